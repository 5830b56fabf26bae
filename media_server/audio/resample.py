"""A streaming resampler: its state lives across chunks, so that there is no click at the seams.

Each sample of the new rate is the sum of 36 samples or more around its place, weighted by a windowed sinc. What 20 ms
of sound become is there at once, but for the last 18 samples (1.1 ms at 16 kHz): soxr, which works in blocks, held back
up to 20 ms from 16 to 24 kHz and 61 ms from 8 to 16 kHz.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import Pcm, silence

_CROSSINGS = 16
"""Zeros of the sinc on each side, at the lower rate: tones that cannot be kept are 70 dB down."""

_CUTOFF = 0.9
"""In parts of half the lower rate."""

_KAISER_BETA = 6.8

_LOWEST, _HIGHEST = np.float32(-32_768), np.float32(32_767)


class Resampler:
    """Turns a stream of mono int16 PCM from one rate into another.

    The rates meet again every `down` samples, which become `up`: a stretch of those and what lies around them, times
    one matrix.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = math.gcd(from_hz, to_hz)
        self._up, self._down = to_hz // common, from_hz // common
        self._matrix, self._n_around = _matrix(self._up, self._down)
        self._ahead = self._n_around // 2
        self._sound = np.zeros(self._ahead - 1, dtype=np.float32)
        self._n_given = 0
        """Of the first stretch in `_sound`."""

    def push(self, pcm: Pcm, *, last: bool = False) -> Pcm:
        """Return what is ready after `pcm` (int16, shape (n,)); with `last`, all that is held back as well.

        After a call with `last` the stream is at its end and takes no more.
        """
        up, down = self._up, self._down
        if up == down:
            return pcm
        n_ahead = self._ahead if last else 0
        n_sound = len(self._sound) + len(pcm) + n_ahead
        n_ready = -((self._n_around - n_sound - 1) * up // down)
        if n_ready <= self._n_given:
            self._sound = np.concatenate((self._sound, pcm), dtype=np.float32)
            return silence(0)
        n_stretches = -(-n_ready // up)
        n_missing = max(0, (n_stretches - 1) * down + len(self._matrix) - n_sound)
        sound = np.concatenate((self._sound, pcm, silence(n_ahead + n_missing)), dtype=np.float32)
        size = sound.itemsize
        stretches: NDArray[np.float32] = np.ndarray(
            (n_stretches, len(self._matrix)), np.float32, sound, strides=(down * size, size)
        )
        # Stretches overlap, and BLAS takes no such matrix: it is copied.
        made: NDArray[np.float32] = stretches.copy().dot(self._matrix).ravel()[self._n_given : n_ready]
        n_whole = n_ready // up
        self._sound = sound[n_whole * down : n_sound]
        self._n_given = n_ready - n_whole * up
        np.rint(made, out=made)
        np.minimum(made, _HIGHEST, out=made)  # np.clip is three calls of Python
        np.maximum(made, _LOWEST, out=made)
        return made.astype(np.int16)


@functools.cache
def _matrix(up: int, down: int) -> tuple[NDArray[np.float32], int]:
    """Return what turns a stretch into `up` samples, shape (n, up), and of how many each of them is the sum."""
    weights = _weights(up, down)
    n_around = weights.shape[1]
    matrix = np.zeros(((up - 1) * down // up + n_around, up), dtype=np.float32)
    for sample in range(up):
        begin, place = divmod(sample * down, up)
        matrix[begin : begin + n_around, sample] = weights[place]
    return matrix, n_around


def _weights(up: int, down: int) -> NDArray[np.float32]:
    """Return float32, shape (up, n): for each place between two samples the weights of the n samples around it."""
    cutoff = _CUTOFF * min(1.0, up / down)
    ahead = math.ceil(_CROSSINGS / cutoff)
    away = np.arange(up)[:, None] / up - np.arange(1 - ahead, ahead + 1)
    window = np.i0(_KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (away / ahead) ** 2)))
    weights = np.sinc(cutoff * away) * window
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
