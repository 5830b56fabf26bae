"""How loud sound is, in dBFS, and whether it can be heard at all."""

import math

import numpy as np

from media_server.audio.chunk import Pcm

FLOOR_DBFS = -96.0
"""What silence measures: the range of 16 bits."""

INAUDIBLE = 4
"""Samples of at most this, -78 dB of full scale, are silence: the rounding of a codec or a resampler."""

_FULL_SCALE = 32768.0


def level_dbfs(pcm: Pcm) -> float:
    """Return the RMS level of int16 `pcm`, shape (n,), from -96 (silence, or nothing at all) to 0."""
    if len(pcm) == 0:
        return FLOOR_DBFS
    samples = pcm.astype(np.float32)
    mean_square = float(np.dot(samples, samples)) / len(samples)
    if mean_square < 1.0:
        return FLOOR_DBFS
    return max(FLOOR_DBFS, 20 * math.log10(math.sqrt(mean_square) / _FULL_SCALE))


def is_inaudible(pcm: Pcm) -> bool:
    """Return whether int16 `pcm`, shape (n,), is silence, or as good as."""
    if len(pcm) == 0:
        return True
    # Not pcm.max(): that is the same behind two calls of Python, and this is asked twice a frame.
    return bool(np.maximum.reduce(pcm) <= INAUDIBLE and np.minimum.reduce(pcm) >= -INAUDIBLE)
