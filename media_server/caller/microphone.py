"""The caller's microphone: recordings played in real time, silence between them, a packet every 20 ms for ever."""

import asyncio
from collections import deque
from fractions import Fraction
from typing import Any

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from media_server.audio.chunk import FRAME_MS, SPEAKING_HZ, Pcm, silence
from media_server.audio.opus import CLOCK_HZ, OpusEncoder
from media_server.errors import PeerGoneError

MICROPHONE_HZ = SPEAKING_HZ
"""The rate of what is played: Opus takes it as it is."""

FRAME_SAMPLES = MICROPHONE_HZ * FRAME_MS // 1000

_FRAME_TICKS = CLOCK_HZ * FRAME_MS // 1000
_TIME_BASE = Fraction(1, CLOCK_HZ)
_BITRATE_BPS = 32_000
_COMPLEXITY = 5
_STALL_S = 0.2
"""A loop that stood still for longer starts the grid anew: the missed frames are not sent in a burst."""


class _Recording:
    """One recording on its way out. `sent` gets the loop time at which its last sample went out."""

    def __init__(self, pcm: Pcm, sent: asyncio.Future[float]) -> None:
        self.pcm = pcm
        self.position = 0
        self.sent = sent

    def end(self, now_s: float) -> None:
        if not self.sent.done():
            self.sent.set_result(now_s)


class Microphone(MediaStreamTrack):
    """A track of ready-made Opus packets on a grid of 20 ms.

    The packets are encoded here because aiortc would encode stereo at 96 kb/s in another thread and compute the level
    of each frame in pure Python: three times the work, for every call of a load test.
    """

    kind = "audio"

    def __init__(self) -> None:
        """Start silent."""
        super().__init__()
        self._encoder = OpusEncoder(bitrate_bps=_BITRATE_BPS, complexity=_COMPLEXITY, expected_loss_percent=5)
        self._recordings: deque[_Recording] = deque()
        self._due_s: float | None = None
        self._pts = 0

    async def play(self, pcm: Pcm) -> float:
        """Say int16 `pcm`, shape (n,), at 24 kHz, after what is being said; return the loop time of its last sample.

        Cancellation silences it with the next frame.

        Raises:
            PeerGoneError: the call ended before.
        """
        if self.readyState != "live":
            raise PeerGoneError("the call is over; nobody hears the caller")
        sent: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._recordings.append(_Recording(pcm, sent))
        return await sent

    async def recv(self) -> "av.Packet[Any]":
        """Return the next packet when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._due_s is None:
            self._due_s = now_s
        else:
            self._due_s += FRAME_MS / 1000
            self._pts += _FRAME_TICKS
            if now_s - self._due_s > _STALL_S:
                # The RTP clock goes on with the wall, or the far end would take the hole for jitter.
                self._pts += round((now_s - self._due_s) * 1000 / FRAME_MS) * _FRAME_TICKS
                self._due_s = now_s
            elif self._due_s > now_s:
                await asyncio.sleep(self._due_s - now_s)
        packet = av.Packet(self._encoder.encode(self._next_frame(loop.time())))
        packet.pts = self._pts
        packet.time_base = _TIME_BASE
        return packet

    def stop(self) -> None:
        """End the track; whoever waits for a recording to be sent is told that the call is over."""
        super().stop()
        for recording in self._recordings:
            if not recording.sent.done():
                recording.sent.set_exception(PeerGoneError("the call ended while the caller spoke"))
        self._recordings.clear()

    def _next_frame(self, now_s: float) -> Pcm:
        frame = silence(FRAME_SAMPLES)
        filled = 0
        while self._recordings and filled < FRAME_SAMPLES:
            recording = self._recordings[0]
            if recording.sent.done():
                self._recordings.popleft()
                continue
            piece = recording.pcm[recording.position : recording.position + FRAME_SAMPLES - filled]
            frame[filled : filled + len(piece)] = piece
            filled += len(piece)
            recording.position += len(piece)
            if recording.position >= len(recording.pcm):
                self._recordings.popleft().end(now_s)
        return frame
