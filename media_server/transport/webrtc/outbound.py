"""From what we say to RTP payloads: one for each 20 ms, for ever. Silence is encoded once and sent again and again.

Copies of packets, for a far end that loses some, are sent only while it says that it does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from media_server.audio import g711, g722, opus
from media_server.audio.chunk import FRAME_MS, FRAME_SAMPLES, SPEAKING_HZ, Pcm, silence
from media_server.audio.clip import Clip
from media_server.audio.levels import is_inaudible
from media_server.audio.resample import Resampler
from media_server.config import WebRtcConfig

_SETTLED_FRAMES = 5
"""After so many silent frames the encoder has said all it held back, and its packet stands for all silence to come."""

WORTH_COPIES = 0.01
COPIES_PERCENT = (5, 30)
"""What the encoder is told at least and at most: below 5 it makes no copies, above 30 they are all that there is."""

COPIES_FOR_S = 10.0
"""So long after the last report of loss; loss comes in clusters."""


class SoundEncoder(Protocol):
    """Turns 24 kHz mono into the packets of one stream."""

    clock_hz: int

    def encode(self, pcm: Pcm) -> bytes:
        """Return the packet of one frame, int16, shape (480,)."""

    def ready(self, clip: Clip, frame: int) -> bytes | None:
        """Return the packet of a clip's frame; None: the frame must be encoded like any other.

        To be called for each frame in turn. A clip is joined at its beginning alone: a packet builds on the one before.
        """

    def expect_loss(self, percent: int) -> None:
        """Prepare for so much of it to be lost; 0: nothing."""


class OpusVoice:
    """Opus."""

    clock_hz = opus.CLOCK_HZ

    def __init__(self, config: WebRtcConfig) -> None:
        self._settings = config.bitrate_bps, config.complexity
        self._encoder = self._make_encoder()
        self._copies = False
        self._last_ready: tuple[Clip, int] | None = None

    def encode(self, pcm: Pcm) -> bytes:
        """See `SoundEncoder`."""
        if self._last_ready is not None:
            # What the far end has decoded last was of another encoder: this one gets there, too.
            clip, frame = self._last_ready
            self._last_ready = None
            self._encoder.begin()
            self._encoder.encode(clip.frame(frame))
        return self._encoder.encode(pcm)

    def ready(self, clip: Clip, frame: int) -> bytes | None:
        """See `SoundEncoder`. There are none with copies."""
        if self._copies or (frame > 0 and self._last_ready != (clip, frame - 1)):
            return None
        self._last_ready = clip, frame
        return clip.packet(("opus", *self._settings), frame, self._begin_clip)

    def expect_loss(self, percent: int) -> None:
        """See `SoundEncoder`."""
        self._copies = percent > 0
        self._encoder.expect_loss(percent)

    def _begin_clip(self) -> Callable[[Pcm], bytes]:
        encoder = self._make_encoder()
        encoder.begin()
        return encoder.encode

    def _make_encoder(self) -> opus.OpusEncoder:
        bitrate_bps, complexity = self._settings
        return opus.OpusEncoder(bitrate_bps=bitrate_bps, complexity=complexity)


class G722Voice:
    """G.722."""

    clock_hz = g722.CLOCK_HZ

    def __init__(self) -> None:
        self._resampler = Resampler(SPEAKING_HZ, g722.RATE_HZ)
        self._resampler.push(silence(FRAME_SAMPLES))  # what it holds back is silence: from now on a frame is a frame
        self._encoder = g722.G722Encoder()

    def encode(self, pcm: Pcm) -> bytes:
        """See `SoundEncoder`."""
        return self._encoder.encode(self._resampler.push(pcm))

    def ready(self, clip: Clip, frame: int) -> bytes | None:
        """Return None: the far end's decoder follows one encoder alone."""

    def expect_loss(self, percent: int) -> None:
        """Do nothing: G.722 has no room for copies."""


class G711Voice:
    """G.711."""

    clock_hz = g711.CLOCK_HZ

    def __init__(self, law: g711.Law) -> None:
        self._law = law
        self._downsampler = g711.Downsampler()

    def encode(self, pcm: Pcm) -> bytes:
        """See `SoundEncoder`."""
        return g711.encode(self._downsampler.push(pcm), self._law)

    def ready(self, clip: Clip, frame: int) -> bytes | None:
        """Return None: encoding is as cheap."""

    def expect_loss(self, percent: int) -> None:
        """Do nothing: G.711 has no room for copies."""


ENCODERS: dict[str, Callable[[WebRtcConfig], SoundEncoder]] = {
    "opus": OpusVoice,
    "g722": lambda _: G722Voice(),
    "pcmu": lambda _: G711Voice("ulaw"),
    "pcma": lambda _: G711Voice("alaw"),
}
"""By the name of the codec in SDP, in lower case."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One RTP packet to be. `onset`: the first one after silence (RFC 3551 section 4.1: the marker bit)."""

    payload: bytes
    onset: bool


class Outbound:
    """The mouth's side of a connection.

    Attributes:
        n_ticks: how long a packet sounds, in ticks of the RTP clock.
    """

    def __init__(self, encoder: SoundEncoder) -> None:
        self._encoder = encoder
        self.n_ticks = encoder.clock_hz * FRAME_MS // 1000
        self._silent_frames = 0
        self._silence = b""
        self._loss_percent = 0
        self._copies_until_s = 0.0

    def expect_loss(self, share: float, now_s: float) -> None:
        """Take how much the far end loses, 0 to 1. To be called at any time."""
        percent = self._loss_percent
        if share > WORTH_COPIES:
            least, most = COPIES_PERCENT
            percent = min(max(round(share * 100), least), most)
            self._copies_until_s = now_s + COPIES_FOR_S
        elif now_s >= self._copies_until_s:
            percent = 0
        if percent != self._loss_percent:
            self._loss_percent = percent
            self._encoder.expect_loss(percent)

    def packet(self, pcm: Pcm, ready: tuple[Clip, int] | None = None) -> Outgoing:
        """Return the packet of one frame: int16, shape (480,), 24 kHz. `ready`: the frame of a clip that it is."""
        made = None if ready is None else self._encoder.ready(*ready)
        if made is not None or not is_inaudible(pcm):
            onset = self._silent_frames > 0
            self._silent_frames = 0
            return Outgoing(self._encoder.encode(pcm) if made is None else made, onset)
        if self._silent_frames < _SETTLED_FRAMES:
            self._silent_frames += 1
            self._silence = self._encoder.encode(pcm)
        return Outgoing(self._silence, onset=False)
