"""A model worker of another process of this server, which starts it and shares it: `WorkerProcess` there.

it dies          its streams raise EngineError; we connect again, and wait for the next one
it is down       we are told why, and ask again every second
nobody holds it  the other process has ended, and we shall soon: it is down
"""

import asyncio
from pathlib import Path

from media_server.engines.workers.link import Link
from media_server.errors import ConfigError, EngineDownError, EngineError

ASK_AGAIN_S = 1.0


class SharedWorker:
    """The place of one shared worker.

    Attributes:
        link: our connection to it, or our place in the queue for the next one.
        down: why there is no worker, nor soon will be.
    """

    process_id: int | None = None
    """It is not ours."""

    def __init__(self, name: str, path: Path, changed: asyncio.Event) -> None:
        """Describe it: the engine's name, where it takes connections, and what is set when its state changes."""
        self.link: Link | None = None
        self.down: EngineError | ConfigError | None = None
        self._name = name
        self._path = path
        self._changed = changed
        self._connect_at_s = 0.0

    @property
    def up(self) -> bool:
        """Return whether streams can be opened in it."""
        return self.link is not None and self.link.ready and not self.link.lost

    async def tend(self) -> None:
        """Bring it on by as much as can be done now."""
        loop = asyncio.get_running_loop()
        if self.link is not None and self.link.lost:
            self.down = self.link.failure
            self._connect_at_s = loop.time() + ASK_AGAIN_S if self.down is not None else 0.0
            self.link = None
        if self.link is None and loop.time() >= self._connect_at_s:
            try:
                _, self.link = await loop.create_unix_connection(lambda: Link(self._changed), str(self._path))
            except OSError as error:
                self.down = EngineDownError(f"{self._name}: the workers' socket cannot be reached: {error.strerror}")
                self._connect_at_s = loop.time() + ASK_AGAIN_S
        if self.up:
            self.down = None

    def until_next_s(self) -> float:
        """Return how long `tend` has nothing to do."""
        if self.link is not None:
            return 0.0 if self.link.lost else ASK_AGAIN_S
        return max(0.0, self._connect_at_s - asyncio.get_running_loop().time())

    def abort(self) -> None:
        """Close our connection; the worker stays."""
        if self.link is not None:
            self.link.abort()

    def kill(self) -> None:
        """Do nothing: the process is another's."""

    async def ended(self) -> None:
        """Do nothing: there is nothing to wait for."""
