"""What the caller hears: every packet of sound with the loop time at which it came.

No jitter buffer stands in front of it. What is measured here is when sound arrived, and not when a player would have
played it. A packet that is missing leaves silence in its place; one that comes late is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from media_server.audio.chunk import HEARING_HZ, Pcm, silence
from media_server.audio.levels import level_dbfs

AUDIBLE_DBFS = -50.0
"""A frame this loud is sound. Speech lies at -35 to -15; what Opus makes of digital silence, far below -70."""

_MAX_GAP_S = 5
"""A longer hole in the RTP clock is a stream that began anew, not one that paused."""

_RTP_TICKS_A_SAMPLE = 48_000 // HEARING_HZ
"""RFC 7587 section 4.1: the RTP clock of Opus is 48 kHz whatever it carries."""


@dataclass(frozen=True, slots=True)
class HeardFrame:
    """One packet's sound.

    Attributes:
        at_s: loop time of its arrival.
        pcm: int16, shape (n,), at 16 kHz.
        gap_samples: silence before it, in place of what is missing.
        dbfs: its RMS level.
    """

    at_s: float
    pcm: Pcm
    gap_samples: int
    dbfs: float

    @property
    def audible(self) -> bool:
        """Return whether there is something to hear."""
        return self.dbfs >= AUDIBLE_DBFS


class Ear:
    """Everything that was heard in a call, in order.

    Attributes:
        frames: the packets' sound, oldest first.
    """

    def __init__(self, decode: Callable[[bytes], Pcm]) -> None:
        """Start with nothing heard. `decode` turns one packet's payload into int16 mono at 16 kHz."""
        self.frames: list[HeardFrame] = []
        self._decode = decode
        self._sequence: int | None = None
        self._next_ticks = 0

    def begin_stream(self) -> None:
        """Expect packets with numbers of their own from now on: another connection carries the call."""
        self._sequence = None

    def hear(self, payload: bytes, sequence: int, timestamp: int, at_s: float) -> None:
        """Take one RTP packet: its payload, sequence number (16 bits), timestamp (32 bits) and loop time of arrival."""
        if not payload:
            return
        step = 1 if self._sequence is None else (sequence - self._sequence) & 0xFFFF
        if step == 0 or step >= 0x8000:
            return
        gap_samples = 0
        if self._sequence is not None:
            gap_ticks = (timestamp - self._next_ticks) & 0xFFFFFFFF
            gap_samples = gap_ticks // _RTP_TICKS_A_SAMPLE
            if gap_samples > _MAX_GAP_S * HEARING_HZ:
                gap_samples = 0
        pcm = self._decode(payload)
        self._sequence = sequence
        self._next_ticks = (timestamp + len(pcm) * _RTP_TICKS_A_SAMPLE) & 0xFFFFFFFF
        self.frames.append(HeardFrame(at_s, pcm, gap_samples, level_dbfs(pcm)))

    @property
    def pcm(self) -> Pcm:
        """Return all that was heard so far, int16, shape (n,), at 16 kHz, holes filled with silence."""
        parts: list[Pcm] = []
        for frame in self.frames:
            if frame.gap_samples:
                parts.append(silence(frame.gap_samples))
            parts.append(frame.pcm)
        return np.concatenate(parts) if parts else silence(0)

    @property
    def first_packet_s(self) -> float | None:
        """Return the loop time of the first packet; None: none came."""
        return self.frames[0].at_s if self.frames else None

    def first_sound_s(self, after_s: float = 0.0) -> float | None:
        """Return the loop time of the first audible packet at or after `after_s`; None: none came."""
        return next((frame.at_s for frame in self.frames if frame.at_s >= after_s and frame.audible), None)

    def last_sound_s(self, before_s: float = float("inf")) -> float | None:
        """Return the loop time of the last audible packet up to `before_s`; None: none came."""
        return next((frame.at_s for frame in reversed(self.frames) if frame.at_s <= before_s and frame.audible), None)
