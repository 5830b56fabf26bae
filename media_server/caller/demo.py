"""What `parley demo` needs: a server of its own on a free port, and a synthetic caller's recordings."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np

from media_server.audio.chunk import Pcm, silence
from media_server.audio.resample import Resampler
from media_server.caller.conversing import Saying
from media_server.caller.microphone import MICROPHONE_HZ
from media_server.caller.sound_file import read_sound
from media_server.caller.tether import end_tethered, start_tethered
from media_server.engines.protocols import Voice
from media_server.engines.tts_espeak import EspeakTts
from media_server.errors import EngineError, PeerGoneError

_READY_TIMEOUT_S = 60.0
"""Models are loaded at start; on one slow core this takes 10 s."""

_POLL_S = 0.1
_ESPEAK_VOICE = Voice("en-us+f2", speed=0.9)
"""Not the agent's, so that one can tell them apart; slow enough for the recogniser (12 of 13 lines came out whole)."""

_STOP_TIMEOUT_S = 10.0
_LOG_LINES = 12


async def make_recordings(lines: Sequence[str], *, path: str | None = None) -> list[Saying]:
    """Return each line as spoken by flite, if it is there, or else by espeak-ng. `path`: where to look; None: PATH."""
    flite = shutil.which("flite", path=path)
    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        if flite is not None:
            return [Saying(line, await _speak_with_flite(flite, line, Path(folder) / "line.wav")) for line in lines]
    return await _speak_with_espeak(lines)


@asynccontextmanager
async def running_server(config: Path | None = None, *, workers: int | None = None) -> AsyncGenerator[str, None]:
    """Run a server on a free port of the loopback; give its address as soon as it is ready for calls.

    It ends with us, even if we are killed.

    Args:
        config: the server's TOML file, if any.
        workers: its media processes; None: as many as are configured.

    Raises:
        PeerGoneError: it ended, or was not ready in time; the message holds the end of its log.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["signaling", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--config", str(config)] if config is not None else []
    command += ["--workers", str(workers)] if workers is not None else []
    with tempfile.TemporaryFile() as log:
        process = await start_tethered(*command, output=log)
        try:
            await _wait_ready(url, process)
            yield url
        except PeerGoneError as error:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
            raise PeerGoneError("\n".join([str(error), *tail])) from error
        finally:
            await end_tethered(process, _STOP_TIMEOUT_S)


async def _wait_ready(url: str, process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S), aiohttp.ClientSession() as http:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"{url}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise PeerGoneError(f"the server was not ready within {_READY_TIMEOUT_S:g} s") from None
    raise PeerGoneError(f"the server ended at once with status {process.returncode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _speak_with_flite(flite: str, line: str, path: Path) -> Pcm:
    process = await asyncio.create_subprocess_exec(flite, "-voice", "slt", "-t", line, "-o", str(path))
    if await process.wait() != 0:
        raise PeerGoneError(f"flite could not speak {line!r}: status {process.returncode}")
    return await asyncio.to_thread(read_sound, path, MICROPHONE_HZ)


async def _speak_with_espeak(lines: Sequence[str]) -> list[Saying]:
    tts = EspeakTts()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(tts.run(), name="the caller's voice")
            await tts.load()
            sayings = [Saying(line, await _speak(tts, line)) for line in lines]
            await tts.close()
    except* EngineError as errors:
        raise errors.exceptions[0] from None
    return sayings


async def _speak(tts: EspeakTts, line: str) -> Pcm:
    resampler = Resampler(tts.rate_hz, MICROPHONE_HZ)
    async with aclosing(tts.speak(line, _ESPEAK_VOICE)) as chunks:
        parts = [resampler.push(chunk.pcm) async for chunk in chunks]
    return np.concatenate([*parts, resampler.push(silence(0), last=True)])
