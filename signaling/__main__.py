"""The `parley` command.

    parley serve     take calls
    parley call      make one, with recordings or typed lines
    parley load      make many, and measure what they cost the server
    parley demo      a server and a caller in one, to hear and see how it goes
    parley config    what is in force, and where each value comes from

Exit status: 0 done, a server that one signal has ended included; 1 it failed; 2 wrong use or a wrong configuration; 128
and its number if a signal ended it before it was done (`call` and `demo`: 1).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from media_server.audio import opus
from media_server.config import SECRETS, Config, Loaded, load_config
from media_server.engines.build import SharedWorkers, build_engines
from media_server.errors import ConfigError, ParleyError
from media_server.event_loop import new_event_loop
from signaling.app import serve
from signaling.house import VERSION
from signaling.neighbours import Neighbours
from signaling.supervisor import PROCESSES_MAX, Supervisor, usable_cores

DESCRIPTORS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knob:
    """One line of `parley config`."""

    name: str
    value: str
    origin: str


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser(arguments).parse_args(arguments)
    args.arguments = arguments
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except ConfigError as error:
        print(f"parley: {error}", file=sys.stderr)
        return 2
    except (ParleyError, OSError) as error:
        print(f"parley: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell counts: 128 and the number of SIGINT


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="parley", description="A server that people talk to.")
    parser.add_argument("--version", action="version", version=f"parley {VERSION}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serving = commands.add_parser("serve", help="take calls")
    _add_config_arguments(serving)
    workers = "media processes; 0, the default: one a core, at most server.max_calls; one with whisper"
    serving.add_argument("--workers", type=int, help=workers)
    serving.add_argument("--place", type=_place, help=argparse.SUPPRESS)  # of a media process, by its supervisor
    serving.set_defaults(run=_serve)

    calling = commands.add_parser("call", help="make a call")
    demo = commands.add_parser("demo", help="a server and a caller in one")
    loading = commands.add_parser("load", help="many calls at once, and what they cost a server")
    if {"call", "demo", "load"} & set(arguments):
        # Only who calls needs the caller's side.
        from media_server.caller.call import add_call_arguments, add_demo_arguments, run_call, run_demo

        add_call_arguments(calling)
        calling.set_defaults(run=run_call)
        add_demo_arguments(demo)
        demo.set_defaults(run=run_demo)
        from media_server.caller.load import add_load_arguments, run_load

        add_load_arguments(loading)
        loading.set_defaults(run=run_load)

    showing = commands.add_parser("config", help="show what is in force, and where each value comes from")
    _add_config_arguments(showing)
    showing.add_argument("--json", metavar="FILE", type=Path, help="write it to FILE as JSON, too")
    showing.set_defaults(run=_show_config)
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="the address that HTTP and media bind to")
    parser.add_argument("--port", type=int, help="the port of HTTP; 0: any free one")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file with values of your own")


def _load(args: argparse.Namespace) -> Loaded:
    given = {"server.host": args.host, "server.port": args.port, "server.workers": getattr(args, "workers", None)}
    return load_config(os.environ, args.config, {name: value for name, value in given.items() if value is not None})


# --- serve -----------------------------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace) -> int:
    config = _load(args).config
    place: _Place | None = args.place
    if place is not None:
        config = config.model_copy(update={"server": config.server.model_copy(update={"port": place.port})})
    logging.basicConfig(level=config.log.level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for library in ("aioice", "aiortc"):
        logging.getLogger(library).setLevel(logging.WARNING)
    _let_us_open_files()
    opus.library()  # calls need it: if there is none, the operator is told now, and not the first caller
    n = media_processes(config, usable_cores())
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if place is None and n > 1:
            workers = partial(SharedWorkers, config)
            supervisor = Supervisor(args.arguments, n, config.server.host, config.server.port, workers, _say)
            return runner.run(supervisor.run())
        engines = build_engines(config, workers_in=None if place is None else place.folder)
        if place is None:
            runner.run(serve(config, engines, _say))
        else:
            neighbours = Neighbours(place.folder, place.index, place.n)
            if place.index == 0:
                for line in engines.lines():
                    _say(line)
            runner.run(serve(config, engines, lambda _: None, neighbours))
    return 0


def _let_us_open_files() -> None:
    """Take as many descriptors as we may have: a call has one for each address, and most systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # the system has another limit: ours stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def media_processes(config: Config, cores: int) -> int:
    """Return how many media processes a server is to have on so many cores."""
    if config.server.workers:
        return config.server.workers
    if config.asr.engine == "whisper":
        return 1  # each would load the model
    return min(cores, config.server.max_calls, PROCESSES_MAX)


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """A media process among its neighbours: which of how many, their port, and their folder."""

    index: int
    n: int
    port: int
    folder: Path


def _place(text: str) -> _Place:
    index, n, port, folder = text.split(",", 3)
    return _Place(int(index), int(n), int(port), Path(folder))


# --- config ----------------------------------------------------------------------------------------------------------


def _show_config(args: argparse.Namespace) -> int:
    knobs = _knobs(_load(args))
    name_width = max(len(knob.name) for knob in knobs)
    value_width = min(max(len(knob.value) for knob in knobs), 44)
    for knob in knobs:
        print(f"{knob.name:<{name_width}}  {knob.value:<{value_width}}  {knob.origin}")
    if args.json is not None:
        document = {knob.name: {"value": json.loads(knob.value), "origin": knob.origin} for knob in knobs}
        args.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _knobs(loaded: Loaded) -> list[_Knob]:
    """Return every knob; the value as JSON, a secret as stars."""
    knobs = []
    for section, values in loaded.config.model_dump().items():
        for last, value in values.items():
            secret = last.endswith(SECRETS) and value
            shown = json.dumps("***" if secret else value, ensure_ascii=False)
            name = f"{section}.{last}"
            knobs.append(_Knob(name=name, value=shown, origin=loaded.origins[name]))
    return knobs


if __name__ == "__main__":
    sys.exit(main())
