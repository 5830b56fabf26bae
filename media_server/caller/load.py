"""`parley load`: how many calls a server carries, and at what price.

    parley load --url http://127.0.0.1:8080 --calls 50 --seconds 30

Callers send speech for two fifths of the time, but for one, who says a chirp each second, which an echo gives back
(`call.mode = "echo"` at our own server). Callers and server share the machine's cores: the table shows what the callers
took, too.

Loss, delay, jitter and reordering are made up on the callers' own sockets, for all datagrams, on the way to the server
and on the way back, each by itself. So from mouth to ear the delay counts twice, as on a real path; `lost_share` and
`late_over_20ms_share` are of the way back.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from media_server.audio.chunk import SPEAKING_HZ
from media_server.caller.arguments import amount, count, new_file, seconds, server_url, share
from media_server.caller.measuring import Load, LoadReport, hum_with_pauses
from media_server.caller.network import Conditions
from media_server.caller.sound_file import read_sound
from media_server.errors import ParleyError
from media_server.event_loop import new_event_loop

_OK, _FAILED, _WRONG_USE = 0, 1, 2


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parley load`."""
    parser.add_argument(
        "--url", type=server_url, required=True, help="the server, or where it takes offers (.../offer: as JSON)"
    )
    parser.add_argument("--calls", type=count, default=10, metavar="N", help="at the same time (default: %(default)s)")
    parser.add_argument("--seconds", type=seconds, default=20.0, metavar="S", help="measured (default: %(default)g)")
    parser.add_argument("--rate", type=amount, default=20.0, help="new calls a second; 0: all at once (default: 20)")
    parser.add_argument("--file", type=Path, help="what the callers say, instead of a hum with pauses")
    parser.add_argument("--pid", type=_pid, action="append", help="of the server; found by the port if not given")
    parser.add_argument(
        "--loss", type=share, default=0.0, metavar="SHARE", help="of the datagrams on each way, 0 to 1 (default: 0)"
    )
    parser.add_argument(
        "--burst", type=_burst, metavar="N", help="with --loss: so many are lost in a row, on average (default: 1)"
    )
    parser.add_argument(
        "--delay", type=amount, default=0.0, metavar="MS", help="of each way: from mouth to ear it counts twice"
    )
    parser.add_argument(
        "--jitter", type=amount, default=0.0, metavar="MS", help="up to so much more on each way; the order stays"
    )
    parser.add_argument(
        "--reorder", type=share, default=0.0, metavar="SHARE", help="datagrams on each way that are overtaken, 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that happens by chance (default: 0)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures")


def run_load(args: argparse.Namespace) -> int:
    """Load a server; return 0 if every call came up and stayed, 1 if not, 2 if what is asked for cannot be."""
    why_not = _why_no_such_losses(args.loss, args.burst)
    if why_not:
        print(f"parley load: {why_not}", file=sys.stderr)
        return _WRONG_USE
    conditions = Conditions(
        loss=args.loss,
        burst=1.0 if args.burst is None else args.burst,
        delay_ms=args.delay,
        jitter_ms=args.jitter,
        reorder=args.reorder,
        seed=args.seed,
    )
    try:
        speech = read_sound(args.file, SPEAKING_HZ) if args.file else hum_with_pauses()
    except ParleyError as error:
        print(f"parley load: {error}", file=sys.stderr)
        return _WRONG_USE
    try:
        load = Load(args.url, args.calls, speech, conditions, rate=args.rate, pids=args.pid)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            report = runner.run(load.run(args.seconds))
    except ParleyError as error:
        print(f"parley load: {error}", file=sys.stderr)
        return _FAILED
    show(report)
    if args.json is not None:
        args.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return _FAILED if report.failures else _OK


def show(report: LoadReport) -> None:
    """Print a report as a table."""
    for name, value in asdict(report).items():
        if name == "failures":
            for failure, n in Counter(value).most_common(5):
                print(f"{'failed':<32} {n} calls: {failure}")
        elif isinstance(value, dict):
            shown = "  ".join(f"{key} {_shown(each)}" for key, each in value.items())
            silent = name == "mouth_to_ear_ms" and value["p50"] is None
            print(f"{name:<32} {_why_unmeasured(report) if silent else shown}")
        else:
            print(f"{name:<32} {_shown(value)}")


def _why_unmeasured(report: LoadReport) -> str:
    if report.chirps:
        return "no chirp came back: the server is no echo (call.mode)"
    return "no chirp was said: the time is too short, or the call that says them failed"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _why_no_such_losses(loss: float, burst: float | None) -> str:
    """Return why so much cannot be lost in such runs; empty: it can."""
    if not loss:
        return "" if burst is None else "--burst is the length of losses: wanted --loss SHARE with it"
    # Between two runs at least one datagram gets through.
    least = loss / (1 - loss)
    if (burst or 1.0) < least:
        return f"--loss {loss:g} is lost in runs of {least:.3g} on average, or longer: wanted such a --burst"
    return ""


def _burst(text: str) -> float:
    found = amount(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"wanted a number of 1 or more, found {text!r}")
    return found


def _pid(text: str) -> int:
    # No system has a longer one, and psutil takes no more than a C long.
    if not text.isdecimal() or len(text) > 10 or not psutil.pid_exists(int(text)):
        raise argparse.ArgumentTypeError(f"there is no process {text!r}")
    return int(text)
