"""How long sound takes from mouth to ear: chirps are said, and found again in what comes back.

A chirp that sweeps from 500 to 3,500 Hz survives a speech codec, and its correlation with itself has one sharp peak.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import HEARING_HZ, Pcm, silence

CHIRP_S = 0.1
EVERY_S = 1.0
_FROM_HZ, _TO_HZ = 500.0, 3_500.0
_LOUD = 12_000.0

SURE = 0.5
"""The least correlation, 0 to 1, of what counts as a chirp."""


def chirp(rate_hz: int) -> Pcm:
    """Return one chirp: int16, shape (n,)."""
    at_s = np.arange(round(CHIRP_S * rate_hz)) / rate_hz
    sweep = 2 * np.pi * (_FROM_HZ * at_s + (_TO_HZ - _FROM_HZ) / (2 * CHIRP_S) * at_s**2)
    return (_LOUD * np.hanning(len(at_s)) * np.sin(sweep)).astype(np.int16)


def chirps(n: int, rate_hz: int) -> Pcm:
    """Return `n` seconds of sound with a chirp at the beginning of each: int16, shape (n * rate_hz,)."""
    one = silence(round(EVERY_S * rate_hz))
    sound = chirp(rate_hz)
    one[: len(sound)] = sound
    return np.tile(one, n)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of sound that was heard: int16, shape (n,), 16 kHz; `at_s` is when its first sample was."""

    at_s: float
    pcm: Pcm


def find_delays_ms(said_s: list[float], heard: list[Stretch]) -> list[float]:
    """Return how long each chirp was under way that was heard within a second, in the order in which they were said.

    Args:
        said_s: when the first sample of each chirp was said.
        heard: what came back, on the same clock; what is missing between the stretches was silent.
    """
    if not heard:
        return []
    begin_s = heard[0].at_s
    length = round((heard[-1].at_s - begin_s) * HEARING_HZ) + len(heard[-1].pcm)
    line = np.zeros(length, dtype=np.float32)
    for stretch in heard:
        at = round((stretch.at_s - begin_s) * HEARING_HZ)
        line[at : at + len(stretch.pcm)] = stretch.pcm[: length - at]
    likeness = _likeness(line, chirp(HEARING_HZ).astype(np.float32))
    delays_ms = []
    for at_s in said_s:
        first = max(0, round((at_s - begin_s) * HEARING_HZ))
        window = likeness[first : first + round(EVERY_S * HEARING_HZ)]
        if len(window) and window.max() >= SURE:
            delays_ms.append((begin_s - at_s) * 1000 + (first + int(window.argmax())) * 1000 / HEARING_HZ)
    return delays_ms


def _likeness(line: NDArray[np.float32], pattern: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation, -1 to 1, of `pattern` with each place of `line`: shape (n - m + 1,)."""
    n, m = len(line), len(pattern)
    if n < m:
        return np.zeros(0, dtype=np.float32)
    size = 1 << (n + m - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(line, size) * np.conj(np.fft.rfft(pattern, size)), size)[: n - m + 1]
    sums = np.concatenate([[0.0], np.cumsum(line.astype(np.float64) ** 2)])
    energy = np.sqrt(np.maximum(sums[m:] - sums[:-m], 1.0)) * np.linalg.norm(pattern)
    return np.asarray(product / energy, dtype=np.float32)
