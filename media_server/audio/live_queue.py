"""Live sound on its way from the transport to the ear: a bounded queue that drops the oldest.

Live sound cannot wait: when its reader falls behind, the oldest chunk goes and is counted, so that delay cannot grow.
"""

import asyncio
from collections import deque

from media_server.audio.chunk import AudioChunk


class LiveQueue:
    """One writer, one reader, at most `limit_ms` of sound between them."""

    def __init__(self, limit_ms: int = 1000) -> None:
        self._limit_ms = limit_ms
        self._chunks: deque[tuple[AudioChunk, float]] = deque()
        self._held_ms = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self.dropped_ms = 0.0

    def put(self, chunk: AudioChunk, arrived_s: float) -> None:
        """Add a chunk; drop the oldest ones if that makes more than the limit.

        Args:
            chunk: mono, 16 kHz.
            arrived_s: when its packet arrived, on the loop's clock.
        """
        self._chunks.append((chunk, arrived_s))
        self._held_ms += chunk.duration_ms
        while self._held_ms > self._limit_ms and len(self._chunks) > 1:
            oldest, _ = self._chunks.popleft()
            self._held_ms -= oldest.duration_ms
            self.dropped_ms += oldest.duration_ms
        self._wake()

    async def get(self) -> tuple[AudioChunk, float]:
        """Return the next chunk and when it arrived, waiting for one. Cancellation loses nothing."""
        while not self._chunks:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk, arrived_s = self._chunks.popleft()
        self._held_ms -= chunk.duration_ms
        return chunk, arrived_s

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
