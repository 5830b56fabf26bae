"""Several media processes behind one address, and who looks after them.

    supervisor          holds the port, starts the processes, replaces those that die, ends them
      |-- process 0     `parley serve` once more, with a place among its neighbours (neighbours.py)
      |-- process 1
      ...
      '-- workers       what all of them share, such as models

A process that dies takes its calls with it, and no others. It is started again at once, and later each time if it dies
again soon. One whose event loop stands still for 10 s is killed. Where the first of them cannot begin (a model is
missing, the configuration is wrong), the server ends.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from media_server.caller.tether import end_tethered, start_tethered
from media_server.errors import ParleyError
from signaling.address import cannot_listen, url_of
from signaling.board import Board
from signaling.neighbours import socket_of
from signaling.shared_folder import BOARD, shared_folder

logger = logging.getLogger(__name__)

PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Before a process is started again, the longer the more often it died in a row."""

LASTED_S = 30.0
"""Whoever lived so long has not died in a row."""

STOP_LIMIT_S = 15.0
"""For calls to be hung up and engines to end; then the process is killed."""

WATCH_S = 1.0
HANG_LOOKS = 10
"""So many looks in a row without a beat, and a process hangs; its callers have noticed after 3 s. Looks, not seconds:
when all have slept, as a machine or a container does, each has time to beat."""

PROCESSES_MAX = 255
"""A call's id has two hexadecimal digits for its process."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.05
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Workers(Protocol):
    """What is there once for all media processes."""

    async def run(self) -> None:
        """Keep them alive until cancelled; then end them."""

    async def load(self) -> None:
        """Wait until they serve.

        Raises:
            EngineError: one of them cannot be had.
            ConfigError: one of them cannot use what it was given.
        """


class Supervisor:
    """Keeps the media processes of one server alive."""

    def __init__(
        self,
        arguments: Sequence[str],
        n: int,
        host: str,
        port: int,
        build_workers: Callable[[Path], Workers],
        say: Callable[[str], None],
    ) -> None:
        """Prepare.

        Args:
            arguments: of `parley`, for each process.
            n: how many processes.
            host: where they listen.
            port: the same; 0: any free one.
            build_workers: is given the folder of the server; returns what the processes find there.
            say: told, line by line, what the operator should see.
        """
        self._arguments = list(arguments)
        self._n = n
        self._host = host
        self._port = port
        self._build_workers = build_workers
        self._say = say
        self._status: int | None = None
        self._failure: ParleyError | None = None
        self._ended = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM, or until a process cannot be started; return the exit status.

        A second signal kills the processes; the status is then 128 and its number, as a shell counts.

        Raises:
            AddressError: the address cannot be listened on.
            EngineError, ConfigError: the workers cannot be had, or their sockets have no place.
        """
        loop = asyncio.get_running_loop()
        with hold_port(self._host, self._port) as held, shared_folder() as folder:
            port = held.getsockname()[1]
            board = Board(folder / BOARD, self._n)
            workers = self._build_workers(folder)
            for number in _SIGNALS:
                loop.add_signal_handler(number, self._stop, 0)
            url = url_of(self._host, port)
            try:
                async with asyncio.TaskGroup() as tasks:
                    working = tasks.create_task(workers.run(), name="workers")
                    keeping = [
                        tasks.create_task(self._keep(index, folder, port, board), name=f"process {index}")
                        for index in range(self._n)
                    ]
                    loading = tasks.create_task(self._load(workers), name="warm-up")
                    telling = tasks.create_task(self._tell(folder, board, url), name="ready")
                    await self._ended.wait()
                    for number in _SIGNALS:
                        loop.add_signal_handler(number, self._stop_at_once, number, keeping)
                    if self._failure is None:
                        self._say(f"stopping; calls to hang up: {board.calls}; a second signal ends them at once")
                    for task in (*keeping, loading, telling):
                        task.cancel()
                    await asyncio.wait(keeping)  # a call that ends may still need the workers
                    working.cancel()
            finally:
                for number in _SIGNALS:
                    loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        return self._status or 0

    def _stop(self, status: int) -> None:
        if self._status is None:
            self._status = status
            self._ended.set()

    def _stop_at_once(self, number: int, keeping: Sequence[asyncio.Task[None]]) -> None:
        for task in keeping:
            if not task.done():
                self._status = 128 + number
                task.cancel()  # once more: it no longer waits for its process, but kills it

    async def _load(self, workers: Workers) -> None:
        try:
            await workers.load()
        except ParleyError as error:
            self._failure = error
            self._stop(1)

    async def _tell(self, folder: Path, board: Board, url: str) -> None:
        """Say when the first process listens, and when all take calls."""
        begun_s = asyncio.get_running_loop().time()
        while not socket_of(folder, 0).exists():  # noqa: ASYNC110 - neither a file nor the board tells anybody
            await asyncio.sleep(_POLL_S)
        self._say(f"listening on {url} with {self._n} processes, the engines are warming up")
        while len(board.ready) < self._n:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        self._say(f"ready for calls after {asyncio.get_running_loop().time() - begun_s:.1f} s: {url}")

    async def _keep(self, index: int, folder: Path, port: int, board: Board) -> None:
        """Start a process, and start it again when it dies."""
        loop = asyncio.get_running_loop()
        deaths = 0
        began = False
        while True:
            begun_s = loop.time()
            status = await self._live(index, folder, port, board)
            began = began or board.was_ready(index)
            board.clear(index)
            if not began and status in (1, 2):
                # The first of its place could not begin: it has said why. Later ones may find a model or a file gone
                # for a while; that must not cost the calls of the others.
                self._stop(status)
                return
            deaths = 0 if loop.time() - begun_s > LASTED_S else deaths + 1
            pause_s = PAUSES_S[min(deaths, len(PAUSES_S)) - 1] if deaths else 0.0
            logger.error("media process %d ended with status %d; the next one comes in %g s", index, status, pause_s)
            await asyncio.sleep(pause_s)

    async def _live(self, index: int, folder: Path, port: int, board: Board) -> int:
        """Run one process to its end, and return its status. Cancelled: end it."""
        place = f"{index},{self._n},{port},{folder}"
        with contextlib.suppress(FileNotFoundError):
            socket_of(folder, index).unlink()
        try:
            process = await start_tethered("signaling", *self._arguments, "--place", place)
        except OSError as error:  # no process, file or memory is to be had now
            logger.error("media process %d cannot be started: %s", index, error)
            return 1
        try:
            return await _ended(process, index, board)
        finally:
            if not await end_tethered(process, STOP_LIMIT_S):
                logger.error("media process %d did not end within %g s and was killed", index, STOP_LIMIT_S)


async def _ended(process: asyncio.subprocess.Process, index: int, board: Board) -> int:
    """Return the status of a process when it has ended; kill it if it hangs. Until its first beat it is starting."""
    beats, looks = board.beats(index), 0
    while True:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(process.wait(), WATCH_S)
        before, beats = beats, board.beats(index)
        looks = looks + 1 if beats and beats == before else 0
        if looks == HANG_LOOKS:
            logger.error("media process %d has not answered for %.0f s and is killed", index, looks * WATCH_S)
            process.kill()


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Return how many cores we may use: those that this process may run on, or fewer if a container's quota says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota_us, period_us = quota.read_text().split()  # https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max
    except OSError:
        return cores
    return cores if quota_us == "max" else min(cores, math.ceil(int(quota_us) / int(period_us)))


def hold_port(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port ours as long as it is open, for processes that share it.

    Raises:
        AddressError: it is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shared = socket.socket(family)
    try:
        with socket.socket(family) as alone:
            # Whoever shares the port with SO_REUSEPORT is found by somebody who does not.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            address = alone.getsockname()
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
    except OSError as error:
        shared.close()
        raise cannot_listen(host, port, error) from error
    return shared
