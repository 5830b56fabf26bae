"""One peer: its environment, made here if it is not there yet, and its server as a process."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from media_server.config import ROOT
from media_server.errors import PeerGoneError

ENVIRONMENTS = ROOT / ".venv-peers"

INSTALL_LIMIT_S = 600.0
READY_LIMIT_S = 60.0
"""FastRTC imports gradio, pandas and librosa."""

_POLL_S = 0.1
_STOP_LIMIT_S = 5.0
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
"""Nothing is asked of a network while we measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server to measure ours against.

    Attributes:
        name: for people.
        package: that its version is asked of.
        script: in this folder; called with the port and `options`.
        path: where it takes offers.
        environment: the folder in `.venv-peers`; empty: it runs in our own.
        requirements: for pip, pinned.
    """

    name: str
    package: str
    script: str
    path: str
    environment: str = ""
    requirements: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def python(self) -> str:
        """Return the interpreter that it runs on."""
        return str(ENVIRONMENTS / self.environment / "bin" / "python") if self.environment else sys.executable

    async def install(self) -> None:
        """Make its environment, unless it is there with just these requirements.

        Raises:
            PeerGoneError: it could not be installed; the message holds pip's last line.
        """
        folder = ENVIRONMENTS / self.environment
        stamp, wanted = folder / ".ready", "\n".join(self.requirements)
        if not self.environment or (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
            return
        print(f"installing {self.name} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
        await _run(sys.executable, "-m", "venv", "--clear", str(folder))
        await _run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.requirements)
        stamp.write_text(wanted, encoding="utf-8")

    async def version(self, package: str) -> str:
        """Return the version of a package in its environment.

        Raises:
            PeerGoneError: it is not there.
        """
        return await _run(
            self.python, "-c", "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))", package
        )

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[str, None]:
        """Run its server on a free port of the loopback; give the address of its offers as soon as it answers.

        Raises:
            PeerGoneError: it ended, or was not ready in time; the message holds the last line that it said.
        """
        port = _free_port()
        with tempfile.TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                *(self.python, str(Path(__file__).parent / self.script), str(port), *self.options),
                env=os.environ | _QUIET,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                await _wait_ready(f"http://127.0.0.1:{port}/", process)
                yield f"http://127.0.0.1:{port}{self.path}"
            except PeerGoneError as error:
                log.seek(0)
                raise PeerGoneError(f"{error}: {_last_line(log.read())}") from None
            finally:
                await _end(process)


AIORTC = Peer(name="aiortc", package="aiortc", script="aiortc_echo.py", path="/offer")


async def _wait_ready(url: str, process: asyncio.subprocess.Process) -> None:
    deadline_s = asyncio.get_running_loop().time() + READY_LIMIT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(READY_LIMIT_S)) as http:
        while asyncio.get_running_loop().time() < deadline_s:
            if process.returncode is not None:
                raise PeerGoneError(f"its server ended at once with status {process.returncode}")
            try:
                async with http.get(url):  # 404 will do
                    return
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(_POLL_S)
    raise PeerGoneError(f"its server was not ready within {READY_LIMIT_S:g} s")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _run(*command: str) -> str:
    """Return the last line that a command says.

    Raises:
        PeerGoneError: it failed, or took too long.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), INSTALL_LIMIT_S)
    except TimeoutError:
        raise PeerGoneError(f"it could not be installed within {INSTALL_LIMIT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise PeerGoneError(f"it could not be installed: {_last_line(said)}")
    return _last_line(said)


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
