"""The sound of one utterance on its way from the ear to the recogniser."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from media_server.audio.chunk import HEARING_HZ, AudioChunk
from media_server.conversation import new_id


class Utterance:
    """What the caller says between the onset and the end of a turn.

    Attributes:
        item_id: of the item that it will become.
        start_pts: where it begins on the stream's clock; the recogniser gets some sound from before.
        end_pts: where its last speech ends.
        arrived_s: when the packet with its first sample of speech arrived, on the loop's clock.
        speech_end_s: when the packet with its last sample of speech arrived.
        stopped_s: when it was decided that the caller has finished.
        speech_ms: how much of it is speech.
        announced: whether the client was told of it.
        recognising: whether a recogniser is at work on it.
        cut_reply: whether it silenced the agent.
        failure: the code with which its recognition failed while it was still being spoken.
        shown: the stable text that the client has.
        on_close: called once, when no more sound will come.
    """

    def __init__(self, start_pts: int) -> None:
        self.item_id = new_id("item")
        self.start_pts = start_pts
        self.end_pts = start_pts
        self.arrived_s = 0.0
        self.speech_end_s = 0.0
        self.stopped_s = 0.0
        self.speech_ms = 0
        self.announced = False
        self.recognising = False
        self.cut_reply = False
        self.failure: str | None = None
        self.shown = ""
        self.on_close: Callable[[], None] | None = None
        self._chunks: deque[AudioChunk] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._samples = 0

    @property
    def seconds(self) -> float:
        """Return how much sound there is."""
        return self._samples / HEARING_HZ

    @property
    def closed(self) -> bool:
        """Return whether no more sound will come."""
        return self._closed

    def push(self, chunk: AudioChunk) -> None:
        """Add sound; endpointing bounds an utterance to 60 s."""
        if not self._closed:
            self._chunks.append(chunk)
            self._samples += len(chunk.pcm)
            self._arrived.set()

    def close(self) -> None:
        """Say that no more will come. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._arrived.set()
            if self.on_close is not None:
                self.on_close()

    async def chunks(self) -> AsyncGenerator[AudioChunk, None]:
        """Yield the sound as it comes, to its end. For one reader."""
        while True:
            while self._chunks:
                yield self._chunks.popleft()
            if self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()
