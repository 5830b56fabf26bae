"""Model workers seen from the parent: a pool of supervised processes, each serving many streams at a time.

An engine whose library holds the GIL, or is not thread-safe, runs in processes of its own. `WorkerPool.open` gives a
stream in the worker that has the fewest; input is sent, replies come back, and leaving the `with` cancels what is not
finished. `worker_link` is the talk with one worker, `worker_child` the other side.

    a worker        its streams raise EngineError; it is started again after 0.1, 0.2, 0.4, 0.8, 1.6 s
    dies            when the fifth of these has died as well it is down, and started again once a minute; with all of
                    them down, `open` raises EngineDownError. A finished stream, or a minute of life, ends the row
    cannot start    the machine has no room for another process: that is a death
    hangs           no frame for `stall_s` while it has work: it is killed, and that is a death
    cannot load     it says why; no second try. `load` raises ConfigError or EngineMissingError

`run` starts no tasks: frames come by callback, so one coroutine watches over all workers of the pool.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from media_server.engines.worker_child import Kind
from media_server.engines.worker_link import Link, WorkerStream
from media_server.errors import ConfigError, EngineDownError, EngineError

logger = logging.getLogger(__name__)

PoolState: TypeAlias = Literal["starting", "up", "degraded", "down", "closed"]

RESTARTS_MAX = 5
STEADY_S = 60.0
"""A worker that lived this long did not die in a row with the one before."""

TICK_S = 1.0
ENDING_TICK_S = 0.02


@dataclass(slots=True)
class _Slot:
    """The place of one worker: who holds it now, and when the next one may start.

    Attributes:
        lost_at_s: when the socket was seen to be closed; the process may need a moment longer.
        down: why there is no worker, nor soon will be.
    """

    link: Link | None = None
    process: asyncio.subprocess.Process | None = None
    started_at_s: float = 0.0
    start_at_s: float = 0.0
    lost_at_s: float | None = None
    deaths: int = 0
    down: EngineError | ConfigError | None = None

    @property
    def up(self) -> bool:
        return self.link is not None and self.link.ready and not self.link.lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient a pool is.

    Attributes:
        load_s: the longest that a worker may take to load.
        stall_s: the longest that a worker with work may be silent.
        open_s: the longest that `open` waits for a worker with room.
        backoff_s: the pause after the first death in a row; each further death doubles it.
        retry_s: the pause between the starts of a worker that is down.
        end_s: a worker that has not ended so long after its socket closed is killed.
    """

    load_s: float = 60.0
    stall_s: float = 10.0
    open_s: float = 10.0
    backoff_s: float = 0.1
    retry_s: float = 60.0
    end_s: float = 2.0


DEFAULT_LIMITS = Limits()


class WorkerPool:
    """Workers of one kind.

    Args:
        name: the engine's name, for messages.
        factory: `module:function`, called in the worker with `options`; returns its `Model`.
        options: JSON.
        count: how many processes.
        streams_max: how many streams a worker bears at a time; more wait.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        options: dict[str, Any],
        *,
        count: int = 1,
        streams_max: int = 64,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.name = name
        self._factory = factory
        self._options = options
        self._slots = [_Slot() for _ in range(count)]
        self._streams_max = streams_max
        self._limits = limits
        self._last_id = 0
        self._changed = asyncio.Event()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closing = False
        self._running = False
        self._ended = asyncio.Event()

    @property
    def state(self) -> PoolState:
        """Return how the pool is; `degraded`: some of its workers are not up."""
        if self._closing:
            return "closed"
        if all(slot.up for slot in self._slots):
            return "up"
        if any(slot.up for slot in self._slots):
            return "degraded"
        return "starting" if self.why_down is None else "down"

    @property
    def why_down(self) -> str | None:
        """Return why no worker is up, nor soon will be; None where that is not so."""
        reasons = [str(slot.down) for slot in self._slots if slot.down is not None and not slot.up]
        return reasons[0] if len(reasons) == len(self._slots) else None

    @property
    def about(self) -> dict[str, Any]:
        """Return what the model says of itself, once a worker is up."""
        return next((slot.link.about for slot in self._slots if slot.up and slot.link is not None), {})

    @property
    def busy(self) -> bool:
        """Return whether any worker has work."""
        return any(slot.link is not None and slot.link.busy for slot in self._slots)

    @property
    def process_ids(self) -> list[int]:
        """Return the ids of the workers that are up."""
        return [slot.process.pid for slot in self._slots if slot.up and slot.process is not None]

    async def run(self) -> None:
        """Keep the workers alive until `close`, or until cancelled; then end them."""
        self._running = True
        try:
            while not self._closing:
                self._changed.clear()
                for slot in self._slots:
                    await self._tend(slot)
                self._wake_waiters()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._until_next_s()):
                        await self._changed.wait()
        finally:
            self._closing = True
            self._wake_waiters()
            try:
                await self._end_all()
            finally:
                self._ended.set()

    async def load(self) -> None:
        """Wait until every worker is up and warm. `run` must be running, or about to.

        Raises:
            ConfigError, EngineMissingError: what a worker said when it could not load.
            EngineDownError: the workers died too often in a row.
            EngineError: they took longer than the limit, or the pool was closed.
        """
        try:
            async with asyncio.timeout(self._limits.load_s):
                while not all(slot.up for slot in self._slots):
                    for slot in self._slots:
                        if slot.down is not None and not slot.up:
                            raise slot.down
                    await self._wait()
        except TimeoutError:
            raise EngineError(f"{self.name}: the workers were not ready within {self._limits.load_s:g} s") from None

    @contextlib.asynccontextmanager
    async def open(self, request: dict[str, Any]) -> AsyncGenerator[WorkerStream, None]:
        """Give a stream in the worker with the fewest, waiting for one with room; cancel it on leaving.

        Raises:
            EngineDownError: no worker is left, nor soon will be; says why.
            EngineError: none had room within the limit, or the pool is closed.
        """
        link = await self._find_link()
        self._last_id = (self._last_id + 1) % 2**32
        stream = link.open(self._last_id, request)
        try:
            yield stream
        finally:
            stream.close()

    async def close(self) -> None:
        """End the workers. Safe to call twice, and before `run`."""
        self._closing = True
        self._changed.set()
        if self._running:
            await self._ended.wait()

    async def _find_link(self) -> Link:
        try:
            async with asyncio.timeout(self._limits.open_s):
                while True:
                    links = [slot.link for slot in self._slots if slot.up and slot.link is not None]
                    link = min(links, key=lambda link: len(link.streams), default=None)
                    if link is not None and len(link.streams) < self._streams_max:
                        return link
                    if self.why_down is not None:
                        raise EngineDownError(self.why_down)
                    await self._wait()
        except TimeoutError:
            raise EngineError(f"{self.name}: no worker had room within {self._limits.open_s:g} s") from None

    async def _wait(self) -> None:
        if self._closing:
            raise EngineError(f"{self.name}: the workers are closed")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def _tend(self, slot: _Slot) -> None:
        """Bring one slot on by as much as can be done now."""
        now_s = asyncio.get_running_loop().time()
        if slot.link is None:
            if now_s >= slot.start_at_s:
                await self._start(slot)
            return
        if slot.link.failure is not None and slot.down is None:
            slot.down = slot.link.failure
            logger.error("%s: a worker cannot load: %s", self.name, slot.down)
            slot.link.abort()
        elif slot.up:
            slot.down = None
        silent_s = now_s - slot.link.heard_at_s
        limit_s = self._limits.stall_s if slot.link.ready else self._limits.load_s
        if silent_s > limit_s and (slot.link.busy or not slot.link.ready) and not slot.link.lost:
            logger.warning("%s: a worker was silent for %.0f s and is killed", self.name, silent_s)
            _kill(slot)
            slot.link.abort()
            slot.link.connection_lost(None)
        if slot.link.lost:
            self._bury(slot, slot.link, now_s)

    async def _start(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        slot.started_at_s = loop.time()
        try:
            ours, theirs = socket.socketpair()
            with theirs, contextlib.ExitStack() as on_failure:
                on_failure.callback(ours.close)
                ours.setblocking(False)
                _, link = await loop.create_connection(lambda: Link(self._changed), sock=ours)
                on_failure.pop_all()
                on_failure.callback(link.abort)
                slot.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "media_server.engines.worker_child",
                    stdin=theirs.fileno(),
                    stdout=2,  # what a library prints belongs beside the log
                    env={**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"},
                )
                on_failure.pop_all()
        except OSError as error:  # no process, file or memory is to be had now
            self._count_death(slot, loop.time(), str(error), in_a_row=True)
            return
        slot.link = link
        link.write(0, Kind.LOAD, {"factory": self._factory, "options": self._options})

    def _bury(self, slot: _Slot, link: Link, now_s: float) -> None:
        """Free the slot of a worker whose socket is closed, once its process has ended; by force if it must be."""
        slot.lost_at_s = slot.lost_at_s or now_s
        code = slot.process.returncode if slot.process is not None else None
        if slot.process is not None and code is None:
            if now_s - slot.lost_at_s > self._limits.end_s:
                _kill(slot)
            return
        slot.link = slot.process = slot.lost_at_s = None
        if link.failure is not None:
            slot.start_at_s = math.inf
            return
        in_a_row = not link.succeeded and now_s - slot.started_at_s < STEADY_S
        self._count_death(slot, now_s, f"status {code}", in_a_row=in_a_row)

    def _count_death(self, slot: _Slot, now_s: float, why: str, *, in_a_row: bool) -> None:
        slot.deaths = slot.deaths + 1 if in_a_row else 1
        pause_s = self._limits.backoff_s * 2 ** (slot.deaths - 1)
        if slot.deaths > RESTARTS_MAX:
            slot.down = EngineDownError(f"{self.name}: a worker died {slot.deaths} times in a row, last with {why}")
            pause_s = self._limits.retry_s
        slot.start_at_s = now_s + pause_s
        level = logging.WARNING if slot.down is None else logging.ERROR
        logger.log(level, "%s: a worker ended with %s; the next starts in %.1f s", self.name, why, pause_s)

    async def _end_all(self) -> None:
        """End every process: all at once, so that one limit is enough for them all."""
        for slot in self._slots:
            if slot.link is not None:
                slot.link.abort()
        processes = [slot.process for slot in self._slots if slot.process is not None]

        async def all_ended() -> None:
            for process in processes:
                await process.wait()

        try:
            # Not asyncio.timeout: before Python 3.11.5 it does not turn into TimeoutError in a task that was cancelled.
            with contextlib.suppress(TimeoutError):  # what has not ended by then is killed
                await asyncio.wait_for(all_ended(), self._limits.end_s)
        finally:
            for slot in self._slots:
                _kill(slot)
        await all_ended()

    def _until_next_s(self) -> float:
        """Return how long the supervision may sleep: until a worker may start, or until those that hang are looked for.

        An ended process tells nobody: one that should end is looked at more often.
        """
        now_s = asyncio.get_running_loop().time()
        starts = [slot.start_at_s - now_s for slot in self._slots if slot.link is None]
        ending = any(slot.lost_at_s is not None for slot in self._slots)
        return max(0.0, min([ENDING_TICK_S if ending else TICK_S, self._limits.stall_s, *starts]))


def _kill(slot: _Slot) -> None:
    if slot.process is not None and slot.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            slot.process.kill()


def _python_path() -> str:
    """Return the path by which the child finds this package, however we found it."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


class PooledEngine:
    """An engine that works in a pool of processes; the root of those that do."""

    name: str

    def __init__(self, factory: str, options: dict[str, Any], *, count: int, streams_max: int) -> None:
        """Describe the pool, as `WorkerPool` does."""
        self._pool = WorkerPool(self.name, factory, options, count=count, streams_max=streams_max)

    @property
    def state(self) -> PoolState:
        """Return how the workers are."""
        return self._pool.state

    @property
    def why_down(self) -> str | None:
        """Return why no worker is up, nor soon will be; None where that is not so."""
        return self._pool.why_down

    @property
    def process_ids(self) -> list[int]:
        """Return the process ids of the workers."""
        return self._pool.process_ids

    async def run(self) -> None:
        """Keep the workers alive until `close`, or until cancelled."""
        await self._pool.run()

    async def load(self) -> None:
        """Wait until the workers are warm; `run` must be running. Raises what `WorkerPool.load` does."""
        await self._pool.load()

    async def close(self) -> None:
        """End the workers."""
        await self._pool.close()
