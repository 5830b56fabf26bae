"""G.711, the sound of telephones: 8 kHz, one byte a sample, by table (ITU-T G.711).

Its two filters give as many frames as they take, from the first: what 20 ms of sound become is there at once and is
20 ms long, because it is a little late in the frame. (`resample` is never late, and holds back a little instead.)
"""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import Pcm

CLOCK_HZ = 8_000

Law: TypeAlias = Literal["ulaw", "alaw"]


def decode(payload: bytes, law: Law) -> Pcm:
    """Return the sound of a packet: int16, shape (len(payload),), 8 kHz."""
    return _DECODED[law][np.frombuffer(payload, dtype=np.uint8)]


def encode(pcm: Pcm, law: Law) -> bytes:
    """Return one byte for each sample of int16 `pcm`, shape (n,), 8 kHz."""
    return _ENCODED[law][pcm.view(np.uint16)].tobytes()


class Upsampler:
    """8 kHz to 16 kHz, 1.5 ms late."""

    def __init__(self) -> None:
        self._filter = _Fir(2 * _low_pass(3600 / 16_000))

    def push(self, pcm: Pcm) -> Pcm:
        """Return int16, shape (2 * n,), for int16 `pcm`, shape (n,)."""
        spread = np.zeros(2 * len(pcm), dtype=np.float32)
        spread[::2] = pcm
        return _int16(self._filter.push(spread))


class Downsampler:
    """24 kHz to 8 kHz, 1 ms late."""

    def __init__(self) -> None:
        self._filter = _Fir(_low_pass(3600 / 24_000))

    def push(self, pcm: Pcm) -> Pcm:
        """Return int16, shape (n / 3,), for int16 `pcm`, shape (n,), n a multiple of 3."""
        return _int16(self._filter.push(pcm.astype(np.float32))[::3])


_TAPS = 49


class _Fir:
    """A filter whose memory lives across chunks."""

    def __init__(self, taps: NDArray[np.float32]) -> None:
        self._taps = taps
        self._before = np.zeros(len(taps) - 1, dtype=np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        joined = np.concatenate((self._before, samples))
        self._before = joined[len(samples) :]
        return np.convolve(joined, self._taps, "valid")


def _low_pass(cutoff: float) -> NDArray[np.float32]:
    """Return a windowed sinc of gain 1; `cutoff` in parts of the rate."""
    n = np.arange(_TAPS) - _TAPS // 2
    taps = np.sinc(2 * cutoff * n) * np.hamming(_TAPS)
    return np.asarray(taps / taps.sum(), dtype=np.float32)


def _int16(samples: NDArray[np.float32]) -> Pcm:
    return np.clip(samples, -32_768, 32_767).astype(np.int16)


def _ulaw_values() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.uint8)
    magnitude = (((code & 0x0F).astype(np.int32) << 3) + 0x84 << ((code & 0x70) >> 4).astype(np.int32)) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_values() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent = ((code & 0x70) >> 4).astype(np.int32)
    mantissa = ((code & 0x0F).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent == 0, mantissa, (mantissa + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _nearest_codes(values: NDArray[np.int16]) -> NDArray[np.uint8]:
    order = np.argsort(values, kind="stable")
    levels = values[order].astype(np.int32)
    borders = (levels[1:] + levels[:-1]) // 2
    samples = np.arange(65_536, dtype=np.uint16).view(np.int16)
    codes: NDArray[np.uint8] = order[np.searchsorted(borders, samples, side="right")].astype(np.uint8)
    return codes


_DECODED: dict[Law, NDArray[np.int16]] = {"ulaw": _ulaw_values(), "alaw": _alaw_values()}
_ENCODED: dict[Law, NDArray[np.uint8]] = {law: _nearest_codes(values) for law, values in _DECODED.items()}
