"""The embedded voice: espeak-ng, whose library and voices come in a wheel.

It is not beautiful, but it is there: no network, no GPU, the first sound within a few milliseconds. It runs in a
worker process; `tts_espeak_model` is its inside.
"""

import re
from collections.abc import AsyncGenerator, Iterator

import numpy as np

from media_server.conversation import Word
from media_server.engines.protocols import SpeechChunk, Voice
from media_server.engines.workers.pool import PooledEngine

PIECE_CHARACTERS = 400
"""A longer text is spoken piece by piece, so that nobody waits long for a turn and little sound lies waiting: about
25 s of speech, 1 MB."""

STREAMS_MAX = 256

_SENTENCE_END = re.compile(r"[.!?…]['\"”’)]*\s")


class EspeakTts(PooledEngine):
    """Speaks English, and a hundred other languages less well.

    `Voice.name`: `default`, or a voice, language or identifier of espeak-ng, with a variant after a plus sign: `en-us`,
    `de`, `en-us+f2`. `Voice.speed` 1 is 175 words a minute; it goes from 80 to 450.

    Args:
        workers: processes. One makes some hundred seconds of speech a second.
    """

    name = "espeak"
    why = "espeak-ng: embedded, needs no network and no GPU"
    rate_hz = 22_050
    """The library's own rate, confirmed by `load`."""

    def __init__(self, *, workers: int = 1) -> None:
        factory = "media_server.engines.tts_espeak_model:EspeakModel"
        super().__init__(factory, {}, count=workers, streams_max=STREAMS_MAX)

    async def load(self) -> None:
        """Wait until the workers are warm; `run` must be running.

        Raises:
            EngineMissingError: espeakng-loader is not installed.
        """
        await self._pool.load()
        self.rate_hz = int(self._pool.about["rate_hz"])

    async def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        """Yield the speech of `text` in chunks of at most 200 ms, each word with its first chunk; see `Tts`."""
        spoken_samples = 0
        for piece in _pieces(text):
            start_ms = spoken_samples * 1000 // self.rate_hz
            request = {"text": piece, "voice": voice.name, "speed": voice.speed, "language": voice.language}
            async with self._pool.open(request) as stream:
                stream.end()
                while (reply := await stream.get()) is not None:
                    pcm = np.frombuffer(reply.body, dtype=np.int16)
                    spoken_samples += len(pcm)
                    words = (Word(text, start_ms + start, start_ms + end) for text, start, end in reply.note["words"])
                    yield SpeechChunk(pcm, tuple(words))


def _pieces(text: str) -> Iterator[str]:
    """Yield the text in pieces that end with a sentence, or else with a word."""
    while len(text) > PIECE_CHARACTERS:
        window = text[:PIECE_CHARACTERS]
        ends = [match.end() for match in _SENTENCE_END.finditer(window)]
        cut = ends[-1] if ends else window.rfind(" ") + 1
        cut = cut or PIECE_CHARACTERS
        if text[:cut].strip():
            yield text[:cut]
        text = text[cut:]
    if text.strip():
        yield text
