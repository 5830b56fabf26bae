"""`parley call`: the command, against a far end with a script."""

import argparse
import asyncio
import io
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from media_server.caller.call import Screen, add_call_arguments, add_demo_arguments, run_call
from media_server.caller.sound_file import read_sound, write_wav
from media_server.caller.subtitles import Line
from tests.caller.far_end import FarEnd, far_end

REPLY: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
    {"type": "response.output_text.delta", "response_id": "resp_1", "item_id": "item_1", "delta": "Sure."},
    {"type": "response.output_text.done", "response_id": "resp_1", "item_id": "item_1", "text": "Sure."},
    {"type": "parley.latency", "response_id": "resp_1", "llm_first_token_ms": 3.2},
    {"type": "response.done", "response": {"id": "resp_1", "status": "completed", "output": []}},
]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_call_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.e2e
async def test_a_typed_turn_is_answered_shown_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_file = tmp_path / "call.json"
    async with far_end(FarEnd(answers={"response.create": REPLY})) as far:
        args = parse("--url", far.url, "--text", "a latte", "--no-wait-greeting", "--json", str(report_file))

        code = await asyncio.to_thread(run_call, args)

    out = capsys.readouterr().out
    report = json.loads(report_file.read_text())
    assert code == 0
    assert "agent: Sure.\n       first word 3 ms\n" in out
    assert "first word           1       3       3       3" in out
    assert report["turns"][0]["said"] == "a latte"
    assert report["turns"][0]["replies"][0]["text"] == "Sure."
    assert report["turns"][0]["answered"] is True
    assert report["setup"]["answer_ms"] < report["setup"]["connected_ms"]
    assert far.hung_up == ["rtc_1"]


@pytest.mark.e2e
async def test_a_recording_is_played_in_real_time_and_what_comes_back_is_written(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(9600) * 2 * np.pi * 440 / 16_000)).astype(np.int16)
    write_wav(tmp_path / "tone.wav", tone, 16_000)
    heard_file = tmp_path / "heard.wav"
    report_file = tmp_path / "call.json"
    async with far_end(FarEnd()) as far:
        args = parse(
            *(str(tmp_path / "tone.wav"), "--url", far.url, "--no-wait-greeting", "--wait-s", "0.4"),
            *("--out", str(heard_file), "--json", str(report_file)),
        )

        code = await asyncio.to_thread(run_call, args)

    turn = json.loads(report_file.read_text())["turns"][0]
    assert code == 1  # an echo is no reply
    assert (turn["said"], turn["answered"]) == ("tone.wav", False)
    assert int(np.abs(read_sound(heard_file, 16_000)).max()) > 6000


@pytest.mark.e2e
async def test_a_greeting_is_heard_before_the_first_word(tmp_path: Path) -> None:
    report_file = tmp_path / "call.json"
    far = FarEnd(greeting=REPLY, answers={"response.create": REPLY})
    async with far_end(far):
        args = parse("--url", far.url, "--text", "a latte", "--json", str(report_file))

        code = await asyncio.to_thread(run_call, args)

    assert code == 0
    assert json.loads(report_file.read_text())["greeting"] == "Sure."


@pytest.mark.e2e
async def test_a_turn_whose_reply_failed_is_not_answered(tmp_path: Path) -> None:
    failed = {"id": "resp_1", "status": "failed", "output": []}
    async with far_end(FarEnd(answers={"response.create": [{"type": "response.done", "response": failed}]})) as far:
        args = parse("--url", far.url, "--text", "a latte", "--no-wait-greeting")

        code = await asyncio.to_thread(run_call, args)

    assert code == 1


@pytest.mark.e2e
async def test_ctrl_c_hangs_up_and_still_reports(tmp_path: Path) -> None:
    report_file = tmp_path / "call.json"
    program = "import sys; from tests.caller.test_call import parse, run_call; sys.exit(run_call(parse(*sys.argv[1:])))"
    async with far_end(FarEnd()) as far:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "--url", far.url, "--text", "a latte", "--no-wait-greeting"),
            *("--json", str(report_file)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        first_line = await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = await process.stdout.read()
        code = await process.wait()

    assert first_line.startswith(b"call rtc_1 to http://127.0.0.1")
    assert b"the call ended early: hung up by Ctrl-C" in rest
    assert b"set-up: answer" in rest
    assert code == 1
    assert far.hung_up == ["rtc_1"]
    assert json.loads(report_file.read_text())["turns"][0]["answered"] is False


def test_a_place_without_a_server_fails_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

        code = run_call(parse("--url", url, "--text", "hello"))

    assert code == 1
    assert capsys.readouterr().err.startswith(f"parley: {url}: nobody answers there")


def test_a_file_that_is_not_there_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_call(parse("nothing.wav"))

    assert code == 2
    assert "nothing.wav: cannot be read as sound" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://[::1", f"http://{'a' * 64}.example", "http://host:70000", "host:8080", "ftp://host", "http://"]
)
def test_an_address_that_can_be_none_is_wrong_use(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--url", url, "--text", "hello")

    assert caught.value.code == 2
    assert f"argument --url: {url!r} is no address of a server" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--out"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_call(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path / "nowhere" / "x", tmp_path):
        with pytest.raises(SystemExit) as caught:
            parse("--text", "hello", option, str(place))

        assert caught.value.code == 2
        assert f"argument {option}: {str(place)!r} cannot be written" in capsys.readouterr().err


def test_nothing_to_say_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_call(parse()) == 2
    assert "nothing to say" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_wait_that_is_no_time_is_wrong_use(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--wait-s", seconds)

    assert caught.value.code == 2
    assert seconds in capsys.readouterr().err


def test_the_demo_shares_the_options_of_a_call() -> None:
    parser = argparse.ArgumentParser()
    add_demo_arguments(parser)

    args = parser.parse_args(["--out", "heard.wav", "--json", "call.json"])

    assert (args.out, args.json, args.wait_s) == (Path("heard.wav"), Path("call.json"), 30.0)


def test_outside_of_a_terminal_every_line_is_plain() -> None:
    stream = io.StringIO()
    screen = Screen(stream)

    screen.show(Line("you (partial): a", live=True))
    screen.show(Line("you:   a latte"))
    screen.end()

    assert stream.getvalue() == "you (partial): a\nyou:   a latte\n"


def test_a_terminal_writes_over_the_live_line() -> None:
    stream = Terminal()
    screen = Screen(stream, width=lambda: 20)

    screen.show(Line("you (partial): a", live=True))
    screen.show(Line("you (partial): a large latte", live=True))
    screen.show(Line("you:   a large latte"))

    assert stream.getvalue() == ("you (partial): a\r\x1b[K...): a large latte\r\x1b[Kyou:   a large latte\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True
