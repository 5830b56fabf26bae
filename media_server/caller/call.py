"""`parley call` and `parley demo`: the commands that call a server and show the conversation."""

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO

from media_server.audio.chunk import HEARING_HZ
from media_server.caller.arguments import new_file, seconds, server_url
from media_server.caller.client import CallClient, Received
from media_server.caller.conversing import Saying, converse
from media_server.caller.demo import make_recordings, running_server
from media_server.caller.microphone import MICROPHONE_HZ
from media_server.caller.report import CallReport
from media_server.caller.sound_file import read_sound, write_wav
from media_server.caller.subtitles import Line, Subtitles
from media_server.errors import ParleyError

DEFAULT_URL = "http://localhost:8080"

_DEMO_LINES = (
    "can i get a small cappuccino with almond milk please",
    "and a medium mocha with whipped cream",
    "that's all",
    "yes please",
)
"""An order that the embedded recogniser understands from the synthetic voices, flite's and espeak-ng's."""

_OK, _FAILED, _BAD_ARGUMENTS = 0, 1, 2


def add_call_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parley call`."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a recording; each is one turn")
    parser.add_argument("--url", type=server_url, default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="LINE",
        help="a typed turn, after the recordings; may be repeated",
    )
    parser.add_argument("--api-key", default="", metavar="KEY", help="sent as a bearer token")
    parser.add_argument(
        "--no-wait-greeting", dest="wait_greeting", action="store_false", help="speak at once, over the greeting"
    )
    _add_common(parser)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parley demo`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration for the demo's server")
    _add_common(parser)


def run_call(args: argparse.Namespace) -> int:
    """Make one call; return 0 if every turn was answered, 1 if not, 2 if the arguments are wrong."""
    try:
        sayings = [Saying(path.name, read_sound(path, MICROPHONE_HZ)) for path in args.files]
    except ParleyError as error:
        return _complain(error, _BAD_ARGUMENTS)
    sayings += [Saying(text) for text in args.text]
    if not sayings:
        print("parley call: nothing to say: give a recording, or --text LINE", file=sys.stderr)
        return _BAD_ARGUMENTS
    report = CallReport(args.url)
    return _run(_call(args.url, args.api_key, sayings, report, args, wait_greeting=args.wait_greeting), report, args)


def run_demo(args: argparse.Namespace) -> int:
    """Start a server, order a coffee from it by voice, and end it; return 0 if every turn was answered."""
    report = CallReport("")
    return _run(_demo(report, args), report, args)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=new_file, metavar="FILE.wav", help="write what was heard")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write turns, replies and latencies")
    parser.add_argument(
        "--wait-s", type=seconds, default=30.0, metavar="S", help="how long a reply may take (default: %(default)g)"
    )


def _run(conversation: Coroutine[Any, Any, None], report: CallReport, args: argparse.Namespace) -> int:
    code = _FAILED
    try:
        asyncio.run(conversation)
        code = _OK if report.turns and all(turn.answered for turn in report.turns) else _FAILED
    except KeyboardInterrupt:
        # asyncio.run has cancelled the call, and the call has hung up.
        report.error = "hung up by Ctrl-C"
        print(f"\nthe call ended early: {report.error}")
    except ParleyError as error:
        report.error = str(error)
        _complain(error, _FAILED)
    _show_end(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    return code


async def _demo(report: CallReport, args: argparse.Namespace) -> None:
    print("making the caller's speech ...", flush=True)
    sayings = await make_recordings(_DEMO_LINES)
    print("starting a server ...", flush=True)
    async with running_server(args.config, workers=1) as url:
        report.url = url
        await _call(url, "", sayings, report, args, wait_greeting=True)


async def _call(
    url: str,
    api_key: str,
    sayings: Sequence[Saying],
    report: CallReport,
    args: argparse.Namespace,
    *,
    wait_greeting: bool,
) -> None:
    screen = Screen(sys.stdout)
    subtitles = Subtitles()

    def show(received: Received) -> None:
        for line in subtitles.lines(received.event):
            screen.show(line)

    client = CallClient(url, api_key=api_key, on_event=show)
    try:
        async with client:
            report.call_id, report.setup = client.call_id, client.setup
            screen.show(Line(f"call {client.call_id} to {url}"))
            await converse(client, sayings, report, wait_s=args.wait_s, wait_greeting=wait_greeting)
    finally:
        screen.end()
        if args.out is not None and client.ear.frames:
            write_wav(args.out, client.ear.pcm, HEARING_HZ)


class Screen:
    """Where lines are shown: a terminal writes over its live line, anything else gets plain lines."""

    def __init__(self, stream: TextIO, width: Callable[[], int] = lambda: shutil.get_terminal_size().columns) -> None:
        """Show lines on `stream`; `width` gives the columns of a terminal."""
        self._stream = stream
        self._width = width
        self._terminal = stream.isatty()
        self._live = False

    def show(self, line: Line) -> None:
        """Show a line at once."""
        start = "\r\x1b[K" if self._live else ""
        self._live = line.live and self._terminal
        self._stream.write(f"{start}{self._fit(line)}{'' if self._live else chr(10)}")
        self._stream.flush()

    def end(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._live:
            self._live = False
            self._stream.write("\n")
            self._stream.flush()

    def _fit(self, line: Line) -> str:
        if not (line.live and self._terminal):
            return line.text
        # A line that wraps cannot be written over: its end is what is new.
        width = self._width() - 1
        return line.text if len(line.text) <= width else f"...{line.text[3 - width :]}"


def _show_end(report: CallReport) -> None:
    unanswered = [turn.said for turn in report.turns if not turn.answered]
    if unanswered and not report.error:
        print(f"\nno whole reply to: {', '.join(unanswered)}")
    table = report.table()
    if table:
        print("\n" + "\n".join(table))


def _complain(error: ParleyError, code: int) -> int:
    print(f"parley: {error}", file=sys.stderr)
    return code
