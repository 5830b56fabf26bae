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


class Resampler:
    """Turns a stream of mono int16 PCM from one rate into another."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = math.gcd(from_hz, to_hz)
        self._up, self._down = to_hz // common, from_hz // common
        self._weights = _weights(self._up, self._down)
        self._ahead = self._weights.shape[1] // 2
        self._sound = np.zeros(self._ahead - 1, dtype=np.float32)
        self._at = 0
        """Place of the next sample's first weight in `_sound`, in parts of `_up`."""

    def push(self, pcm: Pcm, *, last: bool = False) -> Pcm:
        """Return what is ready after `pcm` (int16, shape (n,)); with `last`, all that is held back as well.

        After a call with `last` the stream is at its end and takes no more.
        """
        if self._up == self._down:
            return pcm
        self._sound = np.concatenate((self._sound, pcm, silence(self._ahead if last else 0)), dtype=np.float32)
        n_weights = self._weights.shape[1]
        places = np.arange(self._at, (len(self._sound) - n_weights + 1) * self._up, self._down)
        if not len(places):
            return silence(0)
        around = np.lib.stride_tricks.sliding_window_view(self._sound, n_weights)[places // self._up]
        made = np.einsum("ij,ij->i", around, self._weights[places % self._up])
        self._at = int(places[-1]) + self._down
        n_over = self._at // self._up
        self._sound = self._sound[n_over:]
        self._at -= n_over * self._up
        return np.asarray(np.rint(np.clip(made, -32_768, 32_767)), dtype=np.int16)


@functools.cache
def _weights(up: int, down: int) -> NDArray[np.float32]:
    """Return float32, shape (up, n): for each place between two samples the weights of the n samples around it."""
    cutoff = _CUTOFF * min(1.0, up / down)
    ahead = math.ceil(_CROSSINGS / cutoff)
    away = np.arange(up)[:, None] / up - np.arange(1 - ahead, ahead + 1)
    window = np.i0(_KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (away / ahead) ** 2)))
    weights = np.sinc(cutoff * away) * window
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
