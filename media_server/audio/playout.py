"""Speech on its way to the caller's ear, and the ledger of what was heard.

One reply at a time holds the floor: the right to write. A write without the floor is swallowed, so that a worker that
has not yet noticed its cancellation cannot refill what was cut.

    floor = playout.take_floor(reply_id)      silences whoever held it
    await playout.room(floor); floor.write(pcm, marks)
    playout.read(n)                           the transport, 20 ms on a grid; silence when there is nothing
    playout.ready                             what was read, where packets of it are ready (clip.py)
    playout.cut() -> Heard                    the next read is silence, and the ledger stands still

The ledger counts samples that were read. A mark says "here the text up to character n has been spoken".
"""

import asyncio
from collections import deque
from dataclasses import dataclass

import numpy as np

from media_server.audio.chunk import FRAME_MS, SPEAKING_HZ, Pcm, silence
from media_server.audio.clip import Clip


@dataclass(frozen=True, slots=True)
class Mark:
    """When `at_samples` of a reply's speech have been heard, the first `n_chars` of its text have been heard."""

    at_samples: int
    n_chars: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What reached the ear of a reply."""

    reply_id: str
    heard_ms: int
    n_chars: int


class Floor:
    """The revocable right of one reply to fill the playout."""

    def __init__(self, playout: "Playout", reply_id: str) -> None:
        self._playout = playout
        self.reply_id = reply_id
        self.written_samples = 0
        self.marks: list[Mark] = []

    @property
    def held(self) -> bool:
        """Return whether writes still count."""
        return self._playout.floor is self

    def write(self, pcm: Pcm, marks: tuple[Mark, ...] = (), *, clip: Clip | None = None) -> None:
        """Append int16 `pcm`, shape (n,), at the playout's rate. Swallowed if the floor was lost.

        Args:
            pcm: speech.
            marks: positions from the start of the reply, ascending over all writes; they may lie beyond what is
                written so far.
            clip: of which `pcm` is the whole sound; its packets serve if a frame begins here: see `align`.
        """
        if self.held:
            self.written_samples += len(pcm)
            self.marks.extend(marks)
            self._playout._append(pcm, clip)

    def align(self) -> None:
        """Append silence, less than 20 ms of it, so that what is written next begins with a frame."""
        if self.held:
            n_samples = self._playout._to_next_frame
            self.written_samples += n_samples
            self._playout._append(silence(n_samples), None)

    def chars_at(self, at_ms: int) -> int:
        """Return how much of the text is spoken within the first `at_ms` of the reply."""
        at_samples = at_ms * self._playout.rate_hz // 1000
        return max((mark.n_chars for mark in self.marks if mark.at_samples <= at_samples), default=0)

    def finish(self) -> None:
        """Say that nothing more will be written."""
        if self.held:
            self._playout._finish()


class _Chunk:
    """A stretch of what waits, and how much of it has gone."""

    def __init__(self, pcm: Pcm, clip: Clip | None) -> None:
        self._pcm = pcm
        self._clip = clip
        self._at = 0

    @property
    def empty(self) -> bool:
        return self._at == len(self._pcm)

    def frame(self, n_samples: int) -> tuple[Clip, int] | None:
        """Return the clip and which frame of it comes next; None: there is no clip, or no frame of it begins here."""
        frame, over = divmod(self._at, n_samples)
        return None if self._clip is None or over else (self._clip, frame)

    def take(self, n_samples: int) -> Pcm:
        """Return the next samples, as many as there are at most."""
        taken = self._pcm[self._at : self._at + n_samples]
        self._at += len(taken)
        return taken


class Playout:
    """What the caller is about to hear. Read by the transport, written by the reply that holds the floor."""

    def __init__(self, *, rate_hz: int = SPEAKING_HZ, ahead_ms: int = 3000, duck_db: float = -12.0) -> None:
        """Make an empty playout.

        Args:
            rate_hz: of all sound written and read.
            ahead_ms: how much may be written ahead of the ear before `room` waits.
            duck_db: how much quieter a ducked reply is.
        """
        self.rate_hz = rate_hz
        self.floor: Floor | None = None
        self._ahead_samples = ahead_ms * rate_hz // 1000
        self._duck_gain = 10 ** (duck_db / 20)
        self._gain = 1.0
        self._target_gain = 1.0
        self._frame_samples = rate_hz * FRAME_MS // 1000
        self._chunks: deque[_Chunk] = deque()
        self._held_samples = 0
        self._next_mark = 0
        self._heard_samples = 0
        self._heard_chars = 0
        self._finished = False
        self._changed = asyncio.Event()
        self._read_waited = False
        self._silence: Pcm = silence(0)
        self.recent: Pcm = self._silence
        """What was read last, int16, as loud as it went out."""
        self.ready: tuple[Clip, int] | None = None
        """What was read last is that frame of that clip, and as loud; None: it is of no clip, or quieter."""

    # --- the reply's side ---

    def take_floor(self, reply_id: str) -> Floor:
        """Give the floor to a reply; what was there of another is gone, and its writes are swallowed from now on."""
        self._empty()
        self.floor = Floor(self, reply_id)
        self._heard_samples = self._heard_chars = self._next_mark = 0
        self._finished = False
        self._gain = self._target_gain = 1.0
        return self.floor

    async def room(self, floor: Floor) -> bool:
        """Wait until less than the limit is written ahead; return whether the floor is still held."""
        while floor.held and self._held_samples >= self._ahead_samples:
            await self._change()
        return floor.held

    async def started(self, floor: Floor) -> bool:
        """Wait until the first sample has been read; return False if the floor was lost or nothing was written."""
        while floor.held and not self._heard_samples:
            if self._finished and not self._held_samples:
                return False
            await self._change()
        return floor.held

    async def silent(self) -> None:
        """Wait for the next read: after a cut, that is the first silent packet."""
        self._read_waited = True
        while self._read_waited:
            await self._change()

    async def progressed(self, floor: Floor, n_chars: int) -> int | None:
        """Wait until more than `n_chars` characters were heard; return how many, or None when no more will come."""
        while floor.held:
            if self._heard_chars > n_chars:
                return self._heard_chars
            if self._finished and not self._held_samples:
                return None
            await self._change()
        return None

    # --- the session's side ---

    @property
    def speaking(self) -> bool:
        """Return whether the next read has sound in it."""
        return self._held_samples > 0

    @property
    def ahead_ms(self) -> float:
        """Return how much is written and not yet read."""
        return self._held_samples * 1000 / self.rate_hz

    @property
    def ducked(self) -> bool:
        """Return whether the reply is played more quietly."""
        return self._target_gain != 1.0

    def heard(self) -> Heard | None:
        """Return what was heard so far of the reply that holds the floor, or None if nobody holds it."""
        if self.floor is None:
            return None
        return Heard(
            self.floor.reply_id,
            self._heard_samples * 1000 // self.rate_hz,
            self._heard_chars,
        )

    def duck(self) -> None:
        """Play more quietly from the next read on, sliding there within it."""
        self._target_gain = self._duck_gain

    def unduck(self) -> None:
        """Come back to full volume within the next read."""
        self._target_gain = 1.0

    def cut(self) -> Heard | None:
        """Take the floor and empty the playout: the next read is silence. Return what was heard, if anyone spoke."""
        heard = self.heard()
        self._empty()
        self.floor = None
        self._gain = self._target_gain = 1.0
        return heard

    # --- the transport's side ---

    def read(self, n_samples: int) -> Pcm:
        """Return exactly `n_samples`, int16, shape (n_samples,), padded with silence."""
        if not self._held_samples:
            self._gain = self._target_gain
            self.ready = None
            if len(self._silence) != n_samples:
                self._silence = silence(n_samples)
            self.recent = self._silence
            if self._read_waited:
                self._read_waited = False
                self._changed.set()
            return self.recent
        first = self._chunks[0]
        full_volume = self._gain == self._target_gain == 1.0
        self.ready = first.frame(n_samples) if full_volume and n_samples == self._frame_samples else None
        out = silence(n_samples)
        filled = 0
        while filled < n_samples and self._chunks:
            taken = self._chunks[0].take(n_samples - filled)
            out[filled : filled + len(taken)] = taken
            filled += len(taken)
            if self._chunks[0].empty:
                self._chunks.popleft()
        self._held_samples -= filled
        self._heard_samples += filled
        self._advance_marks()
        self._changed.set()
        self.recent = self._with_gain(out)
        return self.recent

    # --- inside ---

    @property
    def _to_next_frame(self) -> int:
        return -self._held_samples % self._frame_samples

    def _append(self, pcm: Pcm, clip: Clip | None) -> None:
        if len(pcm):
            self._chunks.append(_Chunk(pcm, clip))
            self._held_samples += len(pcm)

    def _finish(self) -> None:
        self._finished = True
        self._advance_marks()
        self._changed.set()

    def _empty(self) -> None:
        self._chunks.clear()
        self._held_samples = 0
        self._changed.set()

    def _advance_marks(self) -> None:
        marks = self.floor.marks if self.floor else []
        at_end = self._finished and not self._held_samples
        while self._next_mark < len(marks) and (marks[self._next_mark].at_samples <= self._heard_samples or at_end):
            self._heard_chars = max(self._heard_chars, marks[self._next_mark].n_chars)
            self._next_mark += 1

    def _with_gain(self, pcm: Pcm) -> Pcm:
        if self._gain == self._target_gain == 1.0:
            return pcm
        slope = np.linspace(self._gain, self._target_gain, len(pcm), dtype=np.float32)
        self._gain = self._target_gain
        return (pcm * slope).astype(np.int16)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
