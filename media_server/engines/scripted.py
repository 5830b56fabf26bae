"""Engines that follow a script: a whole call without a model, the same every time.

They keep to the protocols like the real ones. What takes time waits with `asyncio.sleep`, on the loop's clock, so a
script runs in virtual time as well. A script that has come to its end starts over. What was asked of an engine, and
how that ended, stands in its `records`: a test sees there that a cancellation arrived.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np

from media_server.audio.chunk import HEARING_HZ, SPEAKING_HZ, AudioChunk, Pcm
from media_server.conversation import Transcript, Word
from media_server.engines.protocols import (
    Finished,
    Hints,
    LlmDelta,
    LlmRequest,
    SpeechChunk,
    TextDelta,
    ToolCallDelta,
    VadStream,
    Voice,
)
from media_server.errors import EngineError

WINDOW_SAMPLES = 512
"""32 ms at 16 kHz, as Silero has it."""

Asked = TypeVar("Asked")
Step: TypeAlias = str | float | LlmDelta | EngineError


@dataclass(slots=True, kw_only=True)
class Record(Generic[Asked]):
    """One request to an engine.

    Attributes:
        asked: what was asked.
        ended: `running` until its generator ends. `finished`: the last result was given. `closed`: closed or
            cancelled before. `failed`: it raised.
    """

    asked: Asked
    ended: Literal["running", "finished", "closed", "failed"] = "running"

    def finish(self) -> None:
        """Count the request as finished; called before the last result is given."""
        self.ended = "finished"


class Records(Generic[Asked]):
    """All requests to an engine, in order."""

    def __init__(self) -> None:
        self.all: list[Record[Asked]] = []

    @property
    def asked(self) -> list[Asked]:
        """Return what was asked, in order."""
        return [record.asked for record in self.all]

    @property
    def running(self) -> int:
        """Return how many requests are being served."""
        return self._count("running")

    @property
    def finished(self) -> int:
        """Return how many requests were served to the end."""
        return self._count("finished")

    @property
    def closed(self) -> int:
        """Return how many requests were closed or cancelled before their end."""
        return self._count("closed")

    @property
    def failed(self) -> int:
        """Return how many requests failed."""
        return self._count("failed")

    @contextmanager
    def keep(self, asked: Asked) -> Generator[Record[Asked], None, None]:
        """Record a request for as long as it is served."""
        record = Record(asked=asked)
        self.all.append(record)
        try:
            yield record
        except EngineError:
            record.ended = "failed"
            raise
        finally:
            if record.ended == "running":
                record.ended = "closed"

    def _count(self, ended: str) -> int:
        return sum(record.ended == ended for record in self.all)


class ScriptedVad:
    """Finds speech where the script says, or where the sound is loud."""

    name = "scripted"
    why = "a script says where there is speech"
    window_samples = WINDOW_SAMPLES

    def __init__(self, probabilities: Sequence[float] | None = None, *, threshold: int = 500) -> None:
        """Read the script.

        Args:
            probabilities: of the windows of every call, in order; 0 after the last. None: 1 for a window with a sample
                beyond `threshold`, 0 for any other.
            threshold: of 32,767.
        """
        self._probabilities = None if probabilities is None else tuple(probabilities)
        self._threshold = threshold

    async def load(self) -> None:
        """Do nothing: there is no model."""

    async def close(self) -> None:
        """Do nothing: there is no model."""

    def open(self) -> VadStream:
        """Return a stream at the start of the script."""
        return _ScriptedVadStream(self._probabilities, self._threshold)


class _ScriptedVadStream:
    def __init__(self, probabilities: tuple[float, ...] | None, threshold: int) -> None:
        self._probabilities = None if probabilities is None else iter(probabilities)
        self._threshold = threshold

    async def probability(self, window: Pcm) -> float:
        if window.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"ScriptedVad takes windows of shape ({WINDOW_SAMPLES},), got {window.shape}")
        if self._probabilities is not None:
            return next(self._probabilities, 0.0)
        return 1.0 if np.abs(window.astype(np.int32)).max() > self._threshold else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedUtterance:
    """What the recogniser makes of one utterance.

    Attributes:
        final: the text of the final.
        partials: each with how many milliseconds of sound it takes to come out. `end_pts` is set to what was heard.
        final_delay_s: from the last sample to the final.
        failure: raised in the place of the final.
    """

    final: str
    partials: tuple[tuple[float, Transcript], ...] = ()
    final_delay_s: float = 0.0
    failure: EngineError | None = None


class ScriptedAsr:
    """Hears what the script says, one entry for each utterance.

    Attributes:
        records: the hints of each utterance.
        heard_samples: how much sound each utterance had, in the order in which they ended.
    """

    name = "scripted"
    why = "a script says what is heard"

    def __init__(self, utterances: Sequence[ScriptedUtterance | str]) -> None:
        """Read the script; a text alone is an utterance without partials."""
        if not utterances:
            raise ValueError("ScriptedAsr needs at least one utterance, got none")
        self.records: Records[Hints] = Records()
        self.heard_samples: list[int] = []
        self._utterances = [ScriptedUtterance(final=each) if isinstance(each, str) else each for each in utterances]

    async def load(self) -> None:
        """Do nothing: there is no model."""

    async def close(self) -> None:
        """Do nothing: there is no model."""

    async def transcribe(self, audio: AsyncIterator[AudioChunk], hints: Hints) -> AsyncGenerator[Transcript, None]:
        """Yield the next utterance's partials as its sound comes in, then its final."""
        utterance = self._utterances[len(self.records.all) % len(self._utterances)]
        with self.records.keep(hints) as record:
            heard = 0
            waiting = list(utterance.partials)
            async for chunk in audio:
                if chunk.rate_hz != HEARING_HZ:
                    raise ValueError(f"ScriptedAsr hears {HEARING_HZ} Hz, got {chunk.rate_hz} Hz")
                heard += len(chunk.pcm)
                while waiting and heard * 1000 / HEARING_HZ >= waiting[0][0]:
                    yield replace(waiting.pop(0)[1], end_pts=heard)
            self.heard_samples.append(heard)
            await asyncio.sleep(utterance.final_delay_s)
            if utterance.failure is not None:
                raise utterance.failure
            record.finish()
            yield Transcript(stable=utterance.final, final=True, end_pts=heard)


class ScriptedLlm:
    """Answers what the script says, one entry for each request.

    A reply is a list of steps: a text is a `TextDelta`, a number a pause in seconds, a delta is given as it is and an
    `EngineError` is raised. A reply that does not give its own `Finished` ends with one.

        ScriptedLlm([["Hello ", 0.2, "there."], [1.0, EngineError("the model is gone")]])

    Attributes:
        records: the requests.
    """

    name = "scripted"
    why = "a script says what is answered"

    def __init__(self, replies: Sequence[Sequence[Step]], *, close_delay_s: float = 0.0) -> None:
        """Read the script. `close_delay_s`: how long a reply that is closed early takes to end."""
        if not replies:
            raise ValueError("ScriptedLlm needs at least one reply, got none")
        self.records: Records[LlmRequest] = Records()
        self._replies = [tuple(reply) for reply in replies]
        self._close_delay_s = close_delay_s

    async def load(self) -> None:
        """Do nothing: there is no model."""

    async def close(self) -> None:
        """Do nothing: there is no model."""

    async def reply(self, request: LlmRequest) -> AsyncGenerator[LlmDelta, None]:
        """Yield the next reply of the script."""
        steps = self._replies[len(self.records.all) % len(self._replies)]
        with self.records.keep(request) as record:
            try:
                for step in steps:
                    match step:
                        case str():
                            yield TextDelta(step)
                        case float() | int():
                            await asyncio.sleep(step)
                        case EngineError():
                            record.ended = "failed"
                            raise step
                        case Finished():
                            record.finish()
                            yield step
                            return
                        case _:
                            yield step
                record.finish()
                called = any(isinstance(step, ToolCallDelta) for step in steps)
                yield Finished("tool_calls" if called else "stop")
            finally:
                if record.ended == "running":
                    await asyncio.sleep(self._close_delay_s)


@dataclass(frozen=True, slots=True)
class SpeechAsked:
    """One request to the voice."""

    text: str
    voice: Voice = field(default_factory=Voice)


class ScriptedTts:
    """Speaks every word for the same time, or every letter, as a hum that is never silent.

    Attributes:
        records: the texts and voices.
    """

    name = "scripted"
    why = "a script says how long each word takes"

    def __init__(
        self,
        *,
        rate_hz: int = SPEAKING_HZ,
        ms_per_word: float = 250.0,
        ms_per_character: float | None = None,
        chunk_ms: float = 100.0,
        first_chunk_delay_s: float = 0.0,
        chunk_delay_s: float = 0.0,
        close_delay_s: float = 0.0,
        fails_on: str | None = None,
    ) -> None:
        """Set the voice's manner.

        Args:
            rate_hz: of the sound.
            ms_per_word: how long a word sounds, with the space behind it.
            ms_per_character: if set, a word sounds as long as its characters together.
            chunk_ms: how much speech a chunk holds.
            first_chunk_delay_s: the time it takes to the first chunk.
            chunk_delay_s: the time it takes to each chunk after that.
            close_delay_s: how long a speech that is closed early takes to end.
            fails_on: a text that holds this raises `EngineError` before its first chunk.
        """
        self.rate_hz = rate_hz
        self.records: Records[SpeechAsked] = Records()
        self._ms_per_word = ms_per_word
        self._ms_per_character = ms_per_character
        self._chunk_samples = round(chunk_ms * rate_hz / 1000)
        self._first_chunk_delay_s = first_chunk_delay_s
        self._chunk_delay_s = chunk_delay_s
        self._close_delay_s = close_delay_s
        self._fails_on = fails_on

    async def load(self) -> None:
        """Do nothing: there is no model."""

    async def close(self) -> None:
        """Do nothing: there is no model."""

    async def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        """Yield the hum of `text`, with the times of its words."""
        with self.records.keep(SpeechAsked(text, voice)) as record:
            try:
                await asyncio.sleep(self._first_chunk_delay_s)
                if self._fails_on is not None and self._fails_on in text:
                    record.ended = "failed"
                    raise EngineError(f"the script has no speech for {self._fails_on!r}")
                chunks = self._chunks(self._words(text, voice.speed))
                if not chunks:
                    record.finish()
                for index, chunk in enumerate(chunks):
                    if index > 0:
                        await asyncio.sleep(self._chunk_delay_s)
                    if index == len(chunks) - 1:
                        record.finish()
                    yield chunk
            finally:
                if record.ended == "running":
                    await asyncio.sleep(self._close_delay_s)

    def _words(self, text: str, speed: float) -> list[Word]:
        """Return the words of `text` one behind the other."""
        words: list[Word] = []
        start_ms = 0.0
        for word in text.split():
            long_ms = self._ms_per_word if self._ms_per_character is None else self._ms_per_character * len(word)
            end_ms = start_ms + long_ms / speed
            words.append(Word(word, round(start_ms), round(end_ms)))
            start_ms = end_ms
        return words

    def _chunks(self, words: list[Word]) -> list[SpeechChunk]:
        """Return the whole speech in chunks, each with the words that begin in it."""
        n_samples = round(words[-1].end_ms * self.rate_hz / 1000) if words else 0
        chunks: list[SpeechChunk] = []
        for start in range(0, n_samples, self._chunk_samples):
            end = min(start + self._chunk_samples, n_samples)
            begun = tuple(word for word in words if start <= word.start_ms * self.rate_hz / 1000 < end)
            chunks.append(SpeechChunk(np.full(end - start, 1000, dtype=np.int16), begun))
        return chunks
