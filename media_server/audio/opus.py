"""Opus, by libopus itself: decodes straight to the rate we hear at, and conceals what was lost.

libopus decodes to any of its rates, whatever the sender used (RFC 6716 section 4.2.9), so nothing is resampled here.
The library is the system's, or else the copy that PyAV's wheel carries. One encoder or decoder serves one stream.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from media_server.audio.chunk import HEARING_HZ, SPEAKING_HZ, Pcm
from media_server.errors import EngineMissingError, ParleyError

CLOCK_HZ = 48_000
"""RFC 7587 section 4.1: the RTP clock of Opus is 48 kHz, whatever the rate of the sound."""

MAX_PACKET_BYTES = 1275 * 3 + 7
"""Our limit, three full frames (RFC 6716 section 3.2.1: 1,275 bytes each) and their lengths: 120 ms are six frames of
20 ms or two of 60 ms, and speech fills none of them."""

MAX_PACKET_MS = 120

# RFC 6716 section 3.1, table 2: SILK in three bandwidths, hybrid in two, CELT in four.
_FRAME_TICKS = 3 * (480, 960, 1920, 2880) + 2 * (480, 960) + 4 * (120, 240, 480, 960)

_SYSTEM_NAMES = ("libopus.so.0", "libopus.0.dylib")

# opus_defines.h
_OK = 0
_APPLICATION_VOIP = 2048
_SIGNAL_VOICE = 3001
_SIGNAL_MUSIC = 3002
_SET_BITRATE = 4002
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS_PERC = 4014
_SET_SIGNAL = 4024
_SET_PREDICTION_DISABLED = 4042
_RESET_STATE = 4028

_PLC_STEP_SAMPLES = HEARING_HZ * 25 // 10_000
"""libopus conceals in steps of 2.5 ms."""


class OpusError(ParleyError):
    """libopus refused a packet or a setting."""

    code = "opus_failed"


@functools.cache
def library() -> ctypes.CDLL:
    """Return libopus, loaded once.

    Raises:
        EngineMissingError: there is none on this machine.
    """
    for name in (*_SYSTEM_NAMES, *_wheel_copies()):
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        _declare(lib)
        return lib
    raise EngineMissingError("libopus was not found; install libopus0 (Debian), opus (Homebrew), or the wheel of PyAV")


def packet_ticks(payload: bytes) -> int:
    """Return how long a packet sounds, in ticks of the 48 kHz clock; 0 if it is no Opus packet."""
    if not payload or len(payload) > MAX_PACKET_BYTES:
        return 0
    # RFC 6716 section 3.1: the first byte names the length of a frame and, in its last two bits, how many there are.
    kind = payload[0] & 0b11
    if kind < 3:
        n_frames = 1 if kind == 0 else 2
    elif len(payload) > 1:
        n_frames = payload[1] & 0b111111
    else:
        return 0
    n_ticks = n_frames * _FRAME_TICKS[payload[0] >> 3]
    return n_ticks if n_ticks <= MAX_PACKET_MS * CLOCK_HZ // 1000 else 0


class OpusDecoder:
    """Turns the packets of one stream into 16 kHz mono."""

    def __init__(self) -> None:
        self._lib = library()
        # libopus owns no memory of its own in a state: a Python buffer needs no destructor.
        self._state = ctypes.create_string_buffer(self._lib.opus_decoder_get_size(1))
        _check(self._lib.opus_decoder_init(self._state, HEARING_HZ, 1))
        self._pcm = np.zeros(HEARING_HZ * MAX_PACKET_MS // 1000, dtype=np.int16)
        self._pcm_at = self._pcm.ctypes.data

    def decode(self, payload: bytes) -> Pcm:
        """Return the sound of a packet: int16, shape (n,), 16 kHz.

        Raises:
            OpusError: it is no Opus packet. The decoder stays usable.
        """
        return self._run(payload, len(self._pcm), fec=0)

    def conceal(self, n_samples: int) -> Pcm:
        """Return a guess at `n_samples` (at most 120 ms) of lost sound: int16, shape (n_samples,), 16 kHz."""
        return self._fill(None, n_samples)

    def recover(self, payload: bytes, n_samples: int) -> Pcm:
        """Return the `n_samples` lost just before `payload`, from the copy that it carries, or else a guess."""
        return self._fill(payload, n_samples)

    def _fill(self, payload: bytes | None, n_samples: int) -> Pcm:
        pcm = np.zeros(n_samples, dtype=np.int16)
        n_known = min(n_samples, len(self._pcm)) // _PLC_STEP_SAMPLES * _PLC_STEP_SAMPLES
        if n_known:
            pcm[:n_known] = self._run(payload, n_known, fec=0 if payload is None else 1)
        return pcm

    def _run(self, payload: bytes | None, n_samples: int, *, fec: int) -> Pcm:
        n_bytes = 0 if payload is None else len(payload)
        if payload is not None and not n_bytes:
            raise OpusError("a packet of 0 bytes is no Opus packet")
        n = _check(self._lib.opus_decode(self._state, payload, n_bytes, self._pcm_at, n_samples, fec))
        return self._pcm[:n].copy()


class OpusEncoder:
    """Turns 24 kHz mono into the packets of one stream.

    Of the two encoders in Opus (RFC 6716 section 2), only the one for voice (SILK) can send a packet's copy with the
    next one; the one for all sound (CELT) takes a third of its time for speech nearly as good (`tests/bench/codec.py`).
    So SILK works where packets get lost, and CELT where none do. They can change with any frame.
    """

    def __init__(self, *, bitrate_bps: int, complexity: int, expected_loss_percent: int = 0) -> None:
        """Make an encoder for speech.

        Args:
            bitrate_bps: 6,000 to 510,000.
            complexity: 0 to 10.
            expected_loss_percent: see `expect_loss`.
        """
        self._lib = library()
        self._state = ctypes.create_string_buffer(self._lib.opus_encoder_get_size(1))
        _check(self._lib.opus_encoder_init(self._state, SPEAKING_HZ, 1, _APPLICATION_VOIP))
        self._set(_SET_BITRATE, bitrate_bps)
        self._set(_SET_COMPLEXITY, complexity)
        self.expect_loss(expected_loss_percent)
        self._begins = False
        self._packet = ctypes.create_string_buffer(MAX_PACKET_BYTES)
        self._bytes = memoryview(self._packet).cast("B")

    def expect_loss(self, percent: int) -> None:
        """Put a copy of each frame into the next packet, the better the more get lost; 0: none, and CELT."""
        self._set(_SET_SIGNAL, _SIGNAL_VOICE if percent else _SIGNAL_MUSIC)
        self._set(_SET_INBAND_FEC, int(percent > 0))
        self._set(_SET_PACKET_LOSS_PERC, percent)

    def begin(self) -> None:
        """Let the next packet be one that any decoder can go on with, whatever it has decoded before.

        Any other packet tells how much louder it is than the one before (RFC 6716 section 4.3.2.1), also the first.
        """
        _check(self._lib.opus_encoder_ctl(self._state, _RESET_STATE))
        self._set(_SET_PREDICTION_DISABLED, 1)
        self._begins = True

    def _set(self, request: int, value: int) -> None:
        _check(self._lib.opus_encoder_ctl(self._state, request, ctypes.c_int(value)))

    def encode(self, pcm: Pcm) -> bytes:
        """Return the packet of one frame.

        Args:
            pcm: int16, shape (n,), 24 kHz; n is 2.5, 5, 10, 20, 40 or 60 ms.

        Raises:
            OpusError: the frame has another length.
        """
        n_bytes = _check(self._lib.opus_encode(self._state, pcm.tobytes(), len(pcm), self._packet, MAX_PACKET_BYTES))
        if self._begins:
            self._begins = False
            self._set(_SET_PREDICTION_DISABLED, 0)
        return bytes(self._bytes[:n_bytes])


def _check(result: int) -> int:
    if result < _OK:
        text: bytes = library().opus_strerror(result)
        raise OpusError(f"libopus: {text.decode('ascii')}")
    return result


def _wheel_copies() -> Iterator[str]:
    spec = importlib.util.find_spec("av")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        package = Path(folder)
        yield from map(str, sorted((package.parent / "av.libs").glob("libopus*.so*")))
        yield from map(str, sorted((package / ".dylibs").glob("libopus*.dylib")))


def _declare(lib: ctypes.CDLL) -> None:
    state, number, address, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p
    lib.opus_strerror.argtypes, lib.opus_strerror.restype = [number], text
    lib.opus_decoder_get_size.argtypes = [number]
    lib.opus_decoder_init.argtypes = [state, number, number]
    lib.opus_decode.argtypes = [state, text, number, address, number, number]
    lib.opus_encoder_get_size.argtypes = [number]
    lib.opus_encoder_init.argtypes = [state, number, number, number]
    lib.opus_encoder_ctl.argtypes = [state, number]  # and the value: the function is variadic
    lib.opus_encode.argtypes = [state, text, number, state, number]  # PCM as bytes: its address costs more than a copy
