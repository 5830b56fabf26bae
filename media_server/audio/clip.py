"""Speech that is said again and again: its sound, and its packets once it has been sent.

Packets are made in order and by an encoder of the clip's own, the first time that they are asked for; from then on they
are ready for every call. The sound is kept beside them: a reply that is ducked is encoded anew.
"""

from collections.abc import Callable, Hashable

from media_server.audio.chunk import FRAME_SAMPLES, Pcm, silence


class Clip:
    """A stretch of speech in whole frames.

    Attributes:
        pcm: int16, shape (480 n,), 24 kHz, the last frame filled up with silence.
    """

    def __init__(self, pcm: Pcm) -> None:
        """Take int16 `pcm`, shape (n,), 24 kHz."""
        self.pcm = silence(-(-len(pcm) // FRAME_SAMPLES) * FRAME_SAMPLES)
        self.pcm[: len(pcm)] = pcm
        self._tracks: dict[Hashable, _Track] = {}

    def frame(self, frame: int) -> Pcm:
        """Return the sound of a frame, int16, shape (480,)."""
        return self.pcm[frame * FRAME_SAMPLES : (frame + 1) * FRAME_SAMPLES]

    def packet(self, form: Hashable, frame: int, begin: Callable[[], Callable[[Pcm], bytes]]) -> bytes:
        """Return the packet of a frame.

        Args:
            form: of the packets, such as the codec and its settings.
            frame: which one, from 0; the one before it has been asked for, in this call or another.
            begin: makes an encoder of that form, which is given the frames one after another.
        """
        track = self._tracks.get(form)
        if track is None:
            track = self._tracks[form] = _Track(begin())
        return track.packet(frame, self)


class _Track:
    def __init__(self, encode: Callable[[Pcm], bytes]) -> None:
        self._encode: Callable[[Pcm], bytes] | None = encode
        self._packets: list[bytes] = []

    def packet(self, frame: int, clip: Clip) -> bytes:
        packets = self._packets
        if self._encode is not None and frame == len(packets):
            packets.append(self._encode(clip.frame(frame)))
            if len(packets) * FRAME_SAMPLES == len(clip.pcm):
                self._encode = None  # its encoder is larger than the packets
        return packets[frame]
