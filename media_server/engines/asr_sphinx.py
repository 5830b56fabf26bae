"""The embedded recogniser: pocketsphinx, whose English model comes in its wheel.

It holds the GIL while it works, so it runs in worker processes; `asr_sphinx_model` is their inside. With a grammar it
costs 0.02-0.04 CPU-seconds a second of speech, with the general model 0.07-0.10.
"""

from collections.abc import AsyncGenerator, AsyncIterator

from media_server.audio.chunk import HEARING_HZ, AudioChunk
from media_server.conversation import Transcript, Word
from media_server.engines.protocols import Hints
from media_server.engines.streaming_asr import STABLE_AFTER_MS, Split, StableWords
from media_server.engines.workers.link import Reply
from media_server.engines.workers.pool import PooledEngine

STREAMS_MAX = 24
"""Open utterances a worker: each has a decoder of 10 to 60 MB, and takes 2-10 % of a core."""


class SphinxAsr(PooledEngine):
    """Recognises English, any or only what a grammar or a corpus allows.

    A partial comes about every 100 ms of sound, where it differs from the one before. A final carries the whole
    text as `stable`, also where it contradicts words that were called stable before; where the sound does not match
    the grammar, its text is "". `Hints` are not used: grammar and corpus are what pocketsphinx takes.

    Args:
        workers: processes; each can use one core.
        grammar: JSGF, as text or as the path of a file.
        language_model: a corpus (text of several lines, or the path of a text file), or the path of an ARPA or
            binary model (.lm, .arpa, .bin, .dmp, .gz). Not with a grammar.
        warm: decoders ready in each worker from the start. One more is made when it is needed (0.02 s; 0.4 s with the
            general model, in which the worker's other utterances wait), and given up when it was not needed for long.
        stable_ms: how much sound a word must outlive unchanged to be called stable.
    """

    name = "sphinx"

    def __init__(
        self,
        *,
        workers: int = 1,
        grammar: str | None = None,
        language_model: str | None = None,
        warm: int = 2,
        stable_ms: int = STABLE_AFTER_MS,
    ) -> None:
        if grammar is not None and language_model is not None:
            raise ValueError("either a grammar or a language model, got both")
        self._stable_ms = stable_ms
        options = {"grammar": grammar, "language_model": language_model, "warm": warm}
        factory = "media_server.engines.asr_sphinx_model:SphinxModel"
        super().__init__(factory, options, count=workers, streams_max=STREAMS_MAX)
        heard = "a grammar" if grammar else "a domain language model" if language_model else "the general English model"
        self.why = f"pocketsphinx with {heard}: embedded, needs no network and no GPU"

    async def load(self) -> None:
        """Wait until the workers are warm; `run` must be running.

        Raises:
            ConfigError: the grammar or the language model cannot be used.
            EngineMissingError: pocketsphinx is not installed.
        """
        await self._pool.load()

    async def transcribe(self, audio: AsyncIterator[AudioChunk], hints: Hints) -> AsyncGenerator[Transcript, None]:
        """Yield partials while `audio` lasts, then exactly one final; see `Asr`."""
        partials = _Partials(self._stable_ms)
        async with self._pool.open({}) as stream:
            async for chunk in audio:
                if chunk.rate_hz != HEARING_HZ:
                    raise ValueError(f"the recogniser hears {HEARING_HZ} Hz, got {chunk.rate_hz} Hz")
                await stream.send(chunk.pcm.tobytes())
                while (reply := stream.take()) is not None:
                    if (partial := partials.read(reply)) is not None:
                        yield partial
            stream.end()
            while (reply := await stream.get()) is not None:
                if reply.note["final"]:
                    yield _final(reply)
                elif (partial := partials.read(reply)) is not None:
                    yield partial


class _Partials:
    """The memory of one utterance's partials."""

    def __init__(self, stable_ms: int) -> None:
        self._words = StableWords(stable_ms)
        self._shown = Split("", "")

    def read(self, reply: Reply) -> Transcript | None:
        """Return the partial that a hypothesis makes, if it says anything new."""
        words = _words(reply)
        heard_samples = int(reply.note["heard_samples"])
        split = self._words.update([word.text for word in words], heard_samples * 1000 // HEARING_HZ)
        if split == self._shown:
            return None
        self._shown = split
        return Transcript(stable=split.stable, tail=split.tail, words=words, language="en", end_pts=heard_samples)


def _final(reply: Reply) -> Transcript:
    words = _words(reply)
    return Transcript(
        stable=" ".join(word.text for word in words),
        final=True,
        words=words,
        language="en",
        end_pts=int(reply.note["heard_samples"]),
    )


def _words(reply: Reply) -> tuple[Word, ...]:
    return tuple(Word(text, start_ms, end_ms) for text, start_ms, end_ms in reply.note["words"])
