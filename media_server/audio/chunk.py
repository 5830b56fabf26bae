"""Sound on its way through the house: mono 16-bit PCM with its rate and its place on the stream's clock."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pcm: TypeAlias = NDArray[np.int16]

HEARING_HZ = 16_000
"""The rate of all sound that we hear: what Silero VAD and every recogniser take."""

SPEAKING_HZ = 24_000
"""The rate of all sound that we say: what the Realtime wire and Opus both take as it is."""

FRAME_MS = 20
"""One packet of sound. RFC 7587 section 4.2 recommends 20 ms for Opus; RFC 3551 section 4.5 the same for G.711."""

FRAME_SAMPLES = SPEAKING_HZ * FRAME_MS // 1000
"""In one packet of what we say."""


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A stretch of sound.

    Attributes:
        pcm: int16, shape (n,), mono, read-only by agreement.
        rate_hz: samples a second.
        pts: position of `pcm[0]` on the stream's clock, in samples at `rate_hz`.
    """

    pcm: Pcm
    rate_hz: int
    pts: int = 0

    @property
    def duration_ms(self) -> float:
        """Return how long the chunk sounds."""
        return len(self.pcm) * 1000 / self.rate_hz

    @property
    def end_pts(self) -> int:
        """Return the position of the first sample after the chunk."""
        return self.pts + len(self.pcm)


def silence(n_samples: int) -> Pcm:
    """Return int16 zeros, shape (n_samples,)."""
    return np.zeros(n_samples, dtype=np.int16)
