"""What the demo needs: a caller's voice, and a server that is ready or says why it is not."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from media_server.audio.levels import level_dbfs
from media_server.caller.call import add_demo_arguments, run_demo
from media_server.caller.demo import make_recordings, running_server
from media_server.caller.microphone import MICROPHONE_HZ
from media_server.errors import PeerGoneError


@pytest.mark.parametrize("path", [None, "/nowhere"], ids=["with what is installed", "without flite"])
async def test_the_caller_has_a_voice(path: str | None) -> None:
    sayings = await make_recordings(["yes please", "a large latte"], path=path)

    assert [saying.name for saying in sayings] == ["yes please", "a large latte"]
    for saying in sayings:
        assert saying.pcm is not None
        assert 0.4 * MICROPHONE_HZ < len(saying.pcm) < 3 * MICROPHONE_HZ
        assert -35 < level_dbfs(saying.pcm) < -5


@pytest.mark.e2e
@pytest.mark.models
def test_the_demo_orders_two_coffees(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_demo_arguments(parser)

    code = run_demo(parser.parse_args(["--json", str(tmp_path / "demo.json")]))

    report = json.loads((tmp_path / "demo.json").read_text())
    assert code == 0
    assert report["greeting"]
    assert len(report["turns"]) == 4
    read_back = report["turns"][2]["replies"][0]["text"]
    assert "small cappuccino with almond milk" in read_back
    assert "medium mocha with whipped cream" in read_back
    assert all(turn["heard_ms"] < 2000 for turn in report["turns"])


@pytest.mark.e2e
async def test_a_server_ends_with_who_started_it_however_that_ends() -> None:
    program = """
import asyncio
from media_server.caller.demo import running_server

async def main():
    async with running_server() as url:
        print(url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout is not None
    url = (await starter.stdout.readline()).decode().strip()
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)

    starter.kill()
    await starter.wait()

    async with asyncio.timeout(15):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.e2e
async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[turn]\nsilence_mss = 1\n")

    with pytest.raises(PeerGoneError, match=r"ended at once(.|\n)*did you mean 'turn.silence_ms'"):
        async with running_server(tmp_path / "bad.toml"):
            pass
