"""A voice that remembers what it has said: a greeting, a question asked of every caller, is made once."""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np

from media_server.audio.chunk import SPEAKING_HZ, Pcm, silence
from media_server.audio.clip import Clip
from media_server.audio.resample import Resampler
from media_server.conversation import Word
from media_server.engines.protocols import SpeechChunk, Tts, Voice

LONGEST_S = 20
"""Speech longer than this is not remembered: nobody says the same for so long."""


class RememberingTts:
    """A `Tts` in front of another one. The sound is at 24 kHz, whatever the other one's rate.

    What was said last is remembered longest. Speech that nobody heard to its end is not remembered.
    """

    rate_hz = SPEAKING_HZ

    def __init__(self, tts: Tts, *, limit_mb: float) -> None:
        """Make a voice that remembers.

        Args:
            tts: makes what was not said before.
            limit_mb: of sound; with 0 nothing is remembered.
        """
        self.name, self.why = tts.name, tts.why
        self._tts = tts
        self._limit_bytes = int(limit_mb * 1_000_000)
        self._held_bytes = 0
        self._said: OrderedDict[tuple[str, Voice], tuple[Clip, tuple[Word, ...]]] = OrderedDict()

    async def load(self) -> None:
        """See `Loadable`."""
        await self._tts.load()
        self.why = self._tts.why

    async def close(self) -> None:
        """See `Loadable`."""
        await self._tts.close()

    async def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        """See `Tts`. What was said before comes in one chunk, at once."""
        said = self._said.get((text, voice))
        if said is not None:
            self._said.move_to_end((text, voice))
            clip, words = said
            yield SpeechChunk(clip.pcm, words, clip)
            return
        resampler = Resampler(self._tts.rate_hz, self.rate_hz)
        parts: list[Pcm] = []
        spoken: list[Word] = []
        async with aclosing(self._tts.speak(text, voice)) as chunks:
            async for chunk in chunks:
                parts.append(resampler.push(chunk.pcm))
                spoken.extend(chunk.words)
                yield SpeechChunk(parts[-1], chunk.words)
        parts.append(resampler.push(silence(0), last=True))
        self._remember((text, voice), np.concatenate(parts), tuple(spoken))
        yield SpeechChunk(parts[-1])

    def _remember(self, key: tuple[str, Voice], pcm: Pcm, words: tuple[Word, ...]) -> None:
        clip = Clip(pcm)
        if len(pcm) > LONGEST_S * self.rate_hz or clip.pcm.nbytes > self._limit_bytes or key in self._said:
            return
        self._said[key] = clip, words
        self._held_bytes += clip.pcm.nbytes
        while self._held_bytes > self._limit_bytes:
            _, (oldest, _) = self._said.popitem(last=False)
            self._held_bytes -= oldest.pcm.nbytes
