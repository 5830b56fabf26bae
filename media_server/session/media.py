"""What carries the sound of a call, and how one carrier follows another: a call outlives its connection."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from media_server.audio.chunk import HEARING_HZ, AudioChunk, silence
from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.events import DigitPressed


class Media(Protocol):
    """Where sound comes from and goes to."""

    @property
    def rtt_ms(self) -> float | None:
        """Return the round-trip time to the caller, or None where it is not known."""

    @property
    def heard_s(self) -> float:
        """Return the loop time of the caller's last sign of life."""

    async def connect(self) -> None:
        """Wait until the far end is there.

        Raises:
            PeerGoneError: it never came.
        """

    async def run(self, sound_in: LiveQueue, playout: Playout) -> None:
        """Carry sound both ways until the far end says goodbye.

        Raises:
            PeerGoneError: it was lost, with the reason; it may come back another way.
        """

    async def close(self) -> None:
        """Close the connection. Safe to call twice."""


@runtime_checkable
class Keypad(Protocol):
    """A `Media` with keys to press."""

    on_digit: Callable[[DigitPressed], None]


@runtime_checkable
class Restartable(Protocol):
    """A `Media` whose far end may change its addresses without losing the connection."""

    async def restart(self, offer_sdp: str) -> str | None:
        """Return the answer to an offer with which the far end does so; None: this connection cannot take it."""


class Entrance(LiveQueue):
    """Where one media puts its sound in: a right that can be taken away, as the floor is on the way out.

    The clock of the sound goes on where the media before stopped; its own begins at 0.
    """

    def __init__(self, hearing: LiveQueue, from_pts: int = 0) -> None:
        """Open an entrance to `hearing`; its first sample stands at `from_pts`."""
        super().__init__()
        self.end_pts = from_pts
        self._hearing = hearing
        self._from_pts = from_pts
        self._shut = False

    def put(self, chunk: AudioChunk, arrived_s: float) -> None:
        """Add a chunk to what is heard; it is swallowed once another media has come."""
        if self._shut:
            return
        if self._from_pts:
            chunk = replace(chunk, pts=chunk.pts + self._from_pts)
        self.end_pts = chunk.end_pts
        self._hearing.put(chunk, arrived_s)

    def put_silence(self, seconds: float, now_s: float) -> None:
        """Let the ear hear that nobody is there."""
        chunk = AudioChunk(silence(round(seconds * HEARING_HZ)), HEARING_HZ, self.end_pts)
        self.end_pts = chunk.end_pts
        self._hearing.put(chunk, now_s)

    def follow(self) -> "Entrance":
        """Shut this entrance and return the next one."""
        self._shut = True
        return Entrance(self._hearing, self.end_pts)


class Connection:
    """One media of a call and the task that carries it.

    Attributes:
        admitted: set once the media stands and the call has given it an entrance.
        stood_s: the loop time at which that was; 0: not yet.
    """

    def __init__(self, media: Media) -> None:
        self.media = media
        self.task: asyncio.Task[None] | None = None
        self.admitted: asyncio.Future[Entrance] = asyncio.get_running_loop().create_future()
        self.stood_s = 0.0

    @property
    def heard_s(self) -> float:
        """Return the loop time at which the caller was last there: they were when the connection came to stand."""
        return max(self.media.heard_s, self.stood_s)
