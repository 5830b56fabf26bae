"""G.722, the sound of better telephones: 16 kHz at 64 kb/s, by FFmpeg's codec in PyAV.

One encoder or decoder serves one stream: both adapt as they go.
"""

import ctypes
import functools

import av
import av.filter.graph
import numpy as np

from media_server.audio.chunk import Pcm, silence

CLOCK_HZ = 8_000
"""RFC 3551 section 4.5.2: the RTP clock of G.722 is 8 kHz, for a historical mistake; one byte is two samples."""

RATE_HZ = 16_000


class G722Decoder:
    """Packets to sound."""

    def __init__(self) -> None:
        self._codec = av.AudioCodecContext.create("g722", "r")
        self._codec.layout = "mono"
        self._codec.sample_rate = RATE_HZ

    def decode(self, payload: bytes) -> Pcm:
        """Return the sound of a packet: int16, shape (2 * len(payload),), 16 kHz."""
        if not payload:
            return silence(0)  # FFmpeg takes an empty packet for the end of the stream, and is deaf from then on
        (frame,) = self._codec.decode(av.Packet(payload))
        return np.frombuffer(bytes(frame.planes[0]), dtype=np.int16, count=frame.samples)


class G722Encoder:
    """Sound to packets."""

    def __init__(self) -> None:
        _stay_on_our_thread()
        self._codec = av.AudioCodecContext.create("g722", "w")
        self._codec.format = "s16"
        self._codec.layout = "mono"
        self._codec.sample_rate = RATE_HZ

    def encode(self, pcm: Pcm) -> bytes:
        """Return one byte for each two samples of int16 `pcm`, shape (n,), n even, 16 kHz."""
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm))
        frame.planes[0].update(pcm.tobytes())
        frame.sample_rate = RATE_HZ
        return b"".join(map(bytes, self._codec.encode(frame)))


@functools.cache
def _stay_on_our_thread() -> None:
    """Have FFmpeg see one processor: PyAV's encoders filter each frame, and filters take a thread for each processor.

    PyAV lets nobody set it otherwise (PyAV-Org/PyAV av/audio/codeccontext.py, `_prepare_frames_for_encode`).
    """
    ctypes.CDLL(av.filter.graph.__file__).av_cpu_force_count(1)  # looked for in the libraries that it needs as well
