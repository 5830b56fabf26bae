"""Live sound between the transport and the ear."""

import asyncio

import numpy as np

from media_server.audio.chunk import AudioChunk
from media_server.audio.live_queue import LiveQueue


def chunk(pts: int) -> AudioChunk:
    return AudioChunk(np.zeros(320, dtype=np.int16), 16_000, pts)


async def test_chunks_come_out_in_order_with_their_arrival() -> None:
    queue = LiveQueue()
    queue.put(chunk(0), 1.0)
    queue.put(chunk(320), 1.02)

    first, second = await queue.get(), await queue.get()

    assert second is not None
    assert (first[0].pts, first[1], second[0].pts, second[1]) == (0, 1.0, 320, 1.02)


async def test_full_means_that_the_oldest_goes_and_is_counted() -> None:
    queue = LiveQueue(limit_ms=100)
    for n in range(8):
        queue.put(chunk(n * 320), 0.0)

    first = await queue.get()

    assert first[0].pts == 3 * 320
    assert queue.dropped_ms == 60.0


async def test_a_cancelled_reader_loses_nothing() -> None:
    queue = LiveQueue()
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    queue.put(chunk(0), 0.0)

    got = await queue.get()

    assert got[0].pts == 0
