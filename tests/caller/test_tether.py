"""What is tethered ends when it is told to, and no later than its starter wants."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from media_server.caller.tether import end_tethered, start_tethered

DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nsignal.pause()\n"


@pytest.fixture
async def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Give a process that does not hear SIGTERM."""
    (tmp_path / "deaf.py").write_text(DEAF)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    reading, writing = os.pipe()
    with open(reading, "rb") as says, open(writing, "wb") as output:
        process = await start_tethered("deaf", output=output)
        output.close()
        assert await asyncio.to_thread(says.readline) == b"deaf\n"
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_a_process_that_does_not_end_in_time_is_killed(deaf: asyncio.subprocess.Process) -> None:
    assert not await end_tethered(deaf, 0.01)
    assert deaf.returncode == -signal.SIGKILL


async def test_whoever_no_longer_waits_for_the_end_of_a_process_kills_it(deaf: asyncio.subprocess.Process) -> None:
    ending = asyncio.create_task(end_tethered(deaf, 60))
    await asyncio.sleep(0)  # it has begun to wait
    ending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await ending
    assert deaf.returncode == -signal.SIGKILL
