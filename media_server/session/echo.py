"""A call in which the caller hears themselves: to measure the way of the sound, or to try a microphone.

Everything but the conversation is at work: the connection, the ear with its VAD, the playout, the levels.
"""

from media_server.audio.chunk import HEARING_HZ, AudioChunk, silence
from media_server.audio.levels import is_inaudible
from media_server.audio.playout import Floor, Playout
from media_server.audio.resample import Resampler

AHEAD_LIMIT_MS = 25
"""What comes while more than this waits for the ear is left out: an echo that was late once would be late for ever."""


class Echo:
    """Says what it hears."""

    def __init__(self, playout: Playout) -> None:
        self._playout = playout
        self._floor: Floor = playout.take_floor("echo")
        self._resampler = Resampler(HEARING_HZ, playout.rate_hz)

    def hear(self, chunk: AudioChunk) -> None:
        """Say a chunk of 16 kHz mono."""
        if is_inaudible(chunk.pcm):  # not worth resampling
            pcm = silence(len(chunk.pcm) * self._playout.rate_hz // HEARING_HZ)
        else:
            pcm = self._resampler.push(chunk.pcm)
        if self._playout.ahead_ms <= AHEAD_LIMIT_MS:
            self._floor.write(pcm)
