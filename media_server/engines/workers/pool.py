"""Model workers seen from an engine: a pool of processes, each serving many streams at a time.

An engine whose library holds the GIL, or is not thread-safe, runs in processes of its own. `WorkerPool.open` gives a
stream in the worker that has the fewest; input is sent, replies come back, and leaving the `with` cancels what is not
finished. With all workers down, `open` raises EngineDownError.

    process    a worker of ours: its process is started, watched, started again
    shared     one of another process of this server
    link       the talk with one worker
    frames     what is said there
    child      the other side of it

Where a server has several processes, one has the workers and shares them, the others join; the workers' sockets stand
in a folder that all know. `run` starts no tasks: frames come by callback, so one coroutine looks after all workers.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from media_server.engines.workers.counts import StreamCounts
from media_server.engines.workers.link import Link, WorkerStream
from media_server.engines.workers.process import DEFAULT_LIMITS, TICK_S, Limits, WorkerProcess
from media_server.engines.workers.shared import SharedWorker
from media_server.errors import EngineDownError, EngineError

PoolState: TypeAlias = Literal["starting", "up", "degraded", "down", "closed"]


class WorkerPool:
    """Workers of one kind.

    Args:
        name: the engine's name, for messages and sockets.
        factory: `module:function`, called in the worker with `options`; returns its `Model`.
        options: JSON.
        count: how many processes.
        streams_max: how many streams a worker bears at a time, those of all who share it; more wait.
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
        self._limits = limits
        self._last_id = 0
        self._changed = asyncio.Event()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closing = False
        self._running = False
        self._ended = asyncio.Event()
        self._counts: StreamCounts | None = None
        load = {"factory": factory, "options": options, "streams_max": streams_max}
        self._workers: Sequence[WorkerProcess | SharedWorker] = [
            WorkerProcess(name, load, limits, self._changed) for _ in range(count)
        ]

    def share(self, folder: Path) -> None:
        """Let the pools of other processes join this one, in that folder. Before `run`."""
        for index, worker in enumerate(self._workers):
            if isinstance(worker, WorkerProcess):
                worker.share(self._socket(folder, index), self._counts_file(folder), index)

    def join(self, folder: Path) -> None:
        """Use the workers that another process shares in that folder, and have none of our own. Before `run`."""
        self._counts = StreamCounts(self._counts_file(folder))
        self._workers = [
            SharedWorker(self.name, self._socket(folder, index), self._changed) for index in range(len(self._workers))
        ]

    @property
    def state(self) -> PoolState:
        """Return how the pool is; `degraded`: some of its workers are not up."""
        if self._closing:
            return "closed"
        if all(worker.up for worker in self._workers):
            return "up"
        if any(worker.up for worker in self._workers):
            return "degraded"
        return "starting" if self.why_down is None else "down"

    @property
    def why_down(self) -> str | None:
        """Return why no worker is up, nor soon will be; None where that is not so."""
        reasons = [str(worker.down) for worker in self._workers if worker.down is not None and not worker.up]
        return reasons[0] if len(reasons) == len(self._workers) else None

    @property
    def about(self) -> dict[str, Any]:
        """Return what the model says of itself, once a worker is up."""
        return next((worker.link.about for worker in self._workers if worker.up and worker.link is not None), {})

    @property
    def process_ids(self) -> list[int]:
        """Return the ids of the workers that are ours and up."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    async def run(self) -> None:
        """Keep the workers alive until `close`, or until cancelled; then end them. Shared ones: keep in touch."""
        self._running = True
        try:
            while not self._closing:
                self._changed.clear()
                for worker in self._workers:
                    await worker.tend()
                self._wake_waiters()
                until_next_s = min(TICK_S, *(worker.until_next_s() for worker in self._workers))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until_next_s):
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

        For workers that we joined there is no limit, and all of this is told to who shares them: we do not wait for
        one that is down where there is another.

        Raises:
            ConfigError, EngineMissingError: what a worker said when it could not load.
            EngineDownError: the workers died too often in a row.
            EngineError: they took longer than the limit, or the pool was closed.
        """
        joined = self._counts is not None
        try:
            async with asyncio.timeout(None if joined else self._limits.load_s):
                while not all(worker.up for worker in self._workers):
                    down = [worker.down for worker in self._workers if worker.down is not None and not worker.up]
                    if down and not joined:
                        raise down[0]
                    if self._settled:
                        return
                    await self._wait()
        except TimeoutError:
            raise EngineError(f"{self.name}: the workers were not ready within {self._limits.load_s:g} s") from None

    @contextlib.asynccontextmanager
    async def open(self, request: dict[str, Any]) -> AsyncGenerator[WorkerStream, None]:
        """Give a stream in the worker with the fewest; cancel it on leaving.

        Where that worker has no room, the stream waits in it, and fails if that takes longer than the limit.

        Raises:
            EngineDownError: no worker is left, nor soon will be; says why.
            EngineError: none was up within the limit, or the pool is closed.
        """
        link = await self._find_link()
        self._last_id = (self._last_id + 1) % 2**32
        stream = link.open(self._last_id, request)
        try:
            yield stream
        finally:
            stream.close()

    async def close(self) -> None:
        """End the workers that are ours. Safe to call twice, and before `run`."""
        self._closing = True
        self._changed.set()
        if self._running:
            await self._ended.wait()
        else:
            await self._end_all()

    async def _find_link(self) -> Link:
        try:
            async with asyncio.timeout(self._limits.open_s):
                while True:
                    links = [
                        (self._streams_in(index, worker.link), index, worker.link)
                        for index, worker in enumerate(self._workers)
                        if worker.up and worker.link is not None
                    ]
                    if links:
                        return min(links)[2]
                    if self.why_down is not None:
                        raise EngineDownError(self.why_down)
                    await self._wait()
        except TimeoutError:
            raise EngineError(f"{self.name}: no worker was ready within {self._limits.open_s:g} s") from None

    def _streams_in(self, index: int, link: Link) -> int:
        """Return how many streams a worker has; of those opened this moment it knows only when it has read of them."""
        ours = len(link.streams)
        return ours if self._counts is None else max(ours, self._counts.read(index))

    @property
    def _settled(self) -> bool:
        """Return whether there is a worker, and none that may be up soon."""
        return self.state == "degraded" and all(worker.up or worker.down is not None for worker in self._workers)

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

    async def _end_all(self) -> None:
        """End every process: all at once, so that one limit is enough for them all."""
        for worker in self._workers:
            worker.abort()
        if self._counts is not None:
            self._counts.close()
            self._counts = None

        async def all_ended() -> None:
            for worker in self._workers:
                await worker.ended()

        try:
            # Not asyncio.timeout: before Python 3.11.5 it does not turn into TimeoutError in a task that was cancelled.
            with contextlib.suppress(TimeoutError):  # what has not ended by then is killed
                await asyncio.wait_for(all_ended(), self._limits.end_s)
        finally:
            for worker in self._workers:
                worker.kill()
        await all_ended()

    def _socket(self, folder: Path, index: int) -> Path:
        return folder / f"{self.name}-{index}.sock"

    def _counts_file(self, folder: Path) -> Path:
        return folder / f"{self.name}.streams"


class PooledEngine:
    """An engine that works in a pool of processes; the root of those that do."""

    name: str

    def __init__(self, factory: str, options: dict[str, Any], *, count: int, streams_max: int) -> None:
        """Describe the pool, as `WorkerPool` does."""
        self._pool = WorkerPool(self.name, factory, options, count=count, streams_max=streams_max)

    def share_workers(self, folder: Path) -> None:
        """Let the same engine of other processes use our workers; see `WorkerPool.share`."""
        self._pool.share(folder)

    def join_workers(self, folder: Path) -> None:
        """Use the workers of the same engine of another process; see `WorkerPool.join`."""
        self._pool.join(folder)

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
        """Return the process ids of the workers that are ours."""
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
