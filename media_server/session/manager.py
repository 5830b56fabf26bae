"""All calls of a process: who comes in, and that each one's end is its own."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Protocol

from media_server.config import Config
from media_server.errors import ServerFullError
from media_server.events import Settings
from media_server.metrics import Metrics
from media_server.session.session import Engines, Session

logger = logging.getLogger(__name__)

HANG_UP_LIMIT_S = 5.0
"""A call that has not ended so long after it was asked to is cancelled."""


class Neighbours(Protocol):
    """The other processes of the same server."""

    @property
    def calls_elsewhere(self) -> int:
        """Return how many calls they have."""

    @property
    def call_prefix(self) -> str:
        """Return how the ids of our own calls begin."""

    def take_place(self, calls: int, limit: int) -> bool:
        """Tell them of `calls` here, one more than before, unless all together then have more than `limit`."""

    def note_calls(self, calls: int) -> None:
        """Tell them how many calls there are here."""


@dataclass(slots=True)
class _Call:
    session: Session
    task: asyncio.Task[None] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class SessionManager:
    """Admits calls, up to the configured number, and hangs them up."""

    def __init__(
        self, engines: Engines, config: Config, metrics: Metrics, *, neighbours: Neighbours | None = None
    ) -> None:
        """Prepare to hold calls; `neighbours`: the other processes of the server, if there are any."""
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._neighbours = neighbours
        self._calls: dict[str, _Call] = {}
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def calls(self) -> int:
        """Return how many calls there are, those still connecting included."""
        return len(self._calls)

    @property
    def calls_elsewhere(self) -> int:
        """Return how many calls the server's other processes have."""
        return self._neighbours.calls_elsewhere if self._neighbours is not None else 0

    async def run(self) -> None:
        """Hold the calls until cancelled; then end them."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None

    def admit(self, settings: Settings) -> Session:
        """Return a new call; its place is taken until it ends or is released.

        Raises:
            ServerFullError: all places are taken.
        """
        limit = self._config.server.max_calls
        if not self._take_place(limit):
            self._metrics.count("calls_refused_total")
            raise ServerFullError(
                f"all places are taken (server.max_calls = {limit})", retry_after_s=self._config.server.retry_after_s
            )
        session = Session(
            engines=self._engines,
            config=self._config,
            settings=settings,
            metrics=self._metrics,
            id_prefix=self._neighbours.call_prefix if self._neighbours is not None else "rtc_",
        )
        self._calls[session.id] = _Call(session)
        self._count()
        return session

    def start(self, session: Session) -> None:
        """Let a call live."""
        if self._tasks is None:
            raise RuntimeError("calls live while the manager runs")
        call = self._calls[session.id]
        self._metrics.count("calls_total")
        call.task = self._tasks.create_task(self._live(call), name=f"call {session.id}")

    def release(self, session: Session) -> None:
        """Give back the place of a call that never started."""
        call = self._calls.pop(session.id, None)
        if call is not None:
            call.over.set()
            call.session.let_go()
        self._count()

    def find(self, call_id: str) -> Session | None:
        """Return the call of that id, or None."""
        call = self._calls.get(call_id)
        return None if call is None else call.session

    async def hang_up(self, call_id: str) -> bool:
        """End a call and wait until it has ended, at most twice 5 s; return False if there is none of that id."""
        call = self._calls.get(call_id)
        if call is None:
            return False
        call.session.hang_up("hung up")
        try:
            async with asyncio.timeout(HANG_UP_LIMIT_S):
                await call.over.wait()
        except TimeoutError:
            logger.error("%s: did not end within %g s of being hung up", call_id, HANG_UP_LIMIT_S)
            if call.task is not None:
                call.task.cancel()
                await asyncio.wait([call.task], timeout=HANG_UP_LIMIT_S)
        return True

    def _take_place(self, limit: int) -> bool:
        calls = len(self._calls) + 1
        return calls <= limit if self._neighbours is None else self._neighbours.take_place(calls, limit)

    def _count(self) -> None:
        self._metrics.gauge("calls_active", len(self._calls))
        if self._neighbours is not None:
            self._neighbours.note_calls(len(self._calls))

    async def _live(self, call: _Call) -> None:
        session = call.session
        try:
            reason = await session.run()
            logger.info("%s: ended: %s", session.id, reason)
        except Exception:
            # The edge of a call: its bug ends it, and no other.
            self._metrics.count("calls_failed_total")
            logger.exception("%s: ended by a bug", session.id)
        finally:
            self.release(session)
