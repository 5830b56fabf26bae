"""From what we say to RTP payloads: one for each 20 ms, for ever. Silence is encoded once and sent again and again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from media_server.audio import g711, opus
from media_server.audio.chunk import FRAME_MS, SPEAKING_HZ, Pcm
from media_server.config import WebRtcConfig

FRAME_SAMPLES = SPEAKING_HZ * FRAME_MS // 1000

_SETTLED_FRAMES = 5
"""After so many silent frames the encoder has said all it held back, and its packet stands for all silence to come."""


class SoundEncoder(Protocol):
    """Turns 24 kHz mono into the packets of one stream."""

    clock_hz: int

    def encode(self, pcm: Pcm) -> bytes:
        """Return the packet of one frame, int16, shape (480,)."""


class OpusVoice:
    """Opus."""

    clock_hz = opus.CLOCK_HZ

    def __init__(self, config: WebRtcConfig) -> None:
        self._encoder = opus.OpusEncoder(bitrate_bps=config.bitrate_bps, complexity=config.complexity)

    def encode(self, pcm: Pcm) -> bytes:
        """See `SoundEncoder`."""
        return self._encoder.encode(pcm)


class G711Voice:
    """G.711."""

    clock_hz = g711.CLOCK_HZ

    def __init__(self, law: g711.Law) -> None:
        self._law = law
        self._downsampler = g711.Downsampler()

    def encode(self, pcm: Pcm) -> bytes:
        """See `SoundEncoder`."""
        return g711.encode(self._downsampler.push(pcm), self._law)


ENCODERS: dict[str, Callable[[WebRtcConfig], SoundEncoder]] = {
    "opus": OpusVoice,
    "pcmu": lambda _: G711Voice("ulaw"),
    "pcma": lambda _: G711Voice("alaw"),
}
"""By the name of the codec in SDP, in lower case."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One RTP packet to be. `onset`: the first one after silence (RFC 3551 section 4.1: the marker bit)."""

    payload: bytes
    n_ticks: int
    onset: bool


class Outbound:
    """The mouth's side of a connection."""

    def __init__(self, encoder: SoundEncoder) -> None:
        self._encoder = encoder
        self._n_ticks = encoder.clock_hz * FRAME_MS // 1000
        self._silent_frames = 0
        self._silence = b""

    def packet(self, pcm: Pcm) -> Outgoing:
        """Return the packet of one frame: int16, shape (480,), 24 kHz."""
        if pcm.any():
            onset = self._silent_frames > 0
            self._silent_frames = 0
            return Outgoing(self._encoder.encode(pcm), self._n_ticks, onset)
        if self._silent_frames < _SETTLED_FRAMES:
            self._silent_frames += 1
            self._silence = self._encoder.encode(pcm)
        return Outgoing(self._silence, self._n_ticks, onset=False)
