"""The command: what it prints, and the status it ends with."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from media_server.audio import opus
from media_server.config import known_names, load_config
from signaling.__main__ import main, media_processes
from signaling.house import VERSION


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PARLEY_"):
            monkeypatch.delenv(name)


def test_the_configuration_shows_where_each_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[turn]\nsilence_ms = 400\n")
    monkeypatch.setenv("PARLEY_LLM__ENGINE", "openai")

    status = main(["config", "--config", str(own), "--port", "9000"])

    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert status == 0
    assert list(rows) == list(known_names())
    assert rows["server.port"][1:] == ["9000", "--port"]
    assert rows["turn.silence_ms"][1:] == ["400", str(own)]
    assert rows["llm.engine"][1:] == ['"openai"', "PARLEY_LLM__ENGINE"]
    assert rows["server.host"][1:] == ['"127.0.0.1"', "config/default.toml"]


def test_the_configuration_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config"])

    lines = [line for line in capsys.readouterr().out.splitlines() if "friendly" not in line and "Sorry" not in line]
    assert len({line.rindex("config/default.toml") for line in lines}) == 1


def test_a_secret_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARLEY_LLM__API_KEY", "sk-1234")
    file = tmp_path / "config.json"

    main(["config", "--json", str(file)])

    assert "sk-1234" not in capsys.readouterr().out
    assert json.loads(file.read_text())["llm.api_key"] == {"value": "***", "origin": "PARLEY_LLM__API_KEY"}


def test_a_wrong_value_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_TURN__SILENCE_MSS", "5")

    status = main(["serve"])

    assert status == 2
    assert capsys.readouterr().err == (
        "parley: PARLEY_TURN__SILENCE_MSS: unknown name 'turn.silence_mss'; did you mean 'PARLEY_TURN__SILENCE_MS'?\n"
    )


@pytest.mark.parametrize(
    ("environ", "n"),
    [
        ({}, 8),
        ({"PARLEY_SERVER__MAX_CALLS": "3"}, 3),
        ({"PARLEY_SERVER__WORKERS": "5"}, 5),
        ({"PARLEY_ASR__ENGINE": "whisper"}, 1),
        ({"PARLEY_ASR__ENGINE": "whisper", "PARLEY_SERVER__WORKERS": "2"}, 2),
    ],
)
def test_there_is_a_media_process_a_core_unless_each_would_load_a_model(environ: dict[str, str], n: int) -> None:
    assert media_processes(load_config(environ).config, cores=8) == n


@pytest.mark.parametrize("argv", [[], ["dance"], ["serve", "--port", "x"], ["config", "--host"]])
def test_wrong_use_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)

    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: parley")


def test_the_version_is_the_one_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"parley {VERSION}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    shown = capsys.readouterr().out
    assert all(f"    {command} " in shown for command in ("serve", "call", "demo", "config"))


def test_a_taken_port_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        status = main(["serve", "--port", str(port)])

    assert status == 1
    assert capsys.readouterr().err.startswith(f"parley: cannot listen on 127.0.0.1:{port}: address already in use")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_machine_without_libopus_is_one_line_and_status_1(
    workers: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    opus.library.cache_clear()

    status = main(["serve", "--port", "0", "--workers", workers])

    printed = capsys.readouterr()
    assert status == 1
    assert printed.err.startswith("parley: libopus was not found; install libopus0 (Debian)")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.models
def test_the_server_starts_on_embedded_engines_and_ends_by_a_signal() -> None:
    command = [sys.executable, "-m", "signaling", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line.strip())
            if line.startswith("ready for calls"):
                break
        url = lines[-1].partition(": ")[2]
        with urllib.request.urlopen(f"{url}health", timeout=10) as response:
            health = json.load(response)
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=15)

    assert [line.partition(":")[0] for line in lines[:4]] == ["vad", "asr", "llm", "tts"]
    assert health["engines"] == {"vad": "ready", "asr": "ready", "llm": "ready", "tts": "ready"}
    assert server.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.models
@pytest.mark.parametrize(("max_calls", "processes"), [(25, len(os.sched_getaffinity(0))), (1, 1)])
def test_there_is_a_process_for_each_core_but_none_for_calls_that_are_not_taken(max_calls: int, processes: int) -> None:
    environment = {**os.environ, "PARLEY_SERVER__MAX_CALLS": str(max_calls)}
    command = [sys.executable, "-m", "signaling", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        listening = next(line for line in server.stdout if line.startswith("listening"))
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=15)

    said = listening.partition("/ ")[2].partition(",")[0] if "processes" in listening else ""
    assert said == (f"with {min(processes, max_calls)} processes" if processes > 1 else "")
