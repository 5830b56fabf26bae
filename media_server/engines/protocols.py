"""What the house asks of an engine. One shape for all that talk: something in, an async generator out.

The task that consumes a generator closes it (`contextlib.aclosing`), and that stops the work at once: the request is
closed, the worker told. A generator that fails raises `EngineError`. All engines of a process are shared by all calls
and must bear being used by many tasks at a time.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from media_server.audio.chunk import AudioChunk, Pcm
from media_server.audio.clip import Clip
from media_server.conversation import Item, Transcript, Usage, Word


class Loadable(Protocol):
    """What lives as long as the process: loaded and warmed before the server says that it is ready."""

    name: str
    """The engine as people call it, such as `sphinx`."""
    why: str
    """One line: what serves this stage and why, for the log at start."""

    async def load(self) -> None:
        """Load and warm the engine; returns when the first request will be as fast as any.

        Raises:
            EngineMissingError: says what to install or set.
            EngineError: what is there did not become ready.
            ConfigError: it cannot use what it was given.
        """

    async def close(self) -> None:
        """Give everything back. Safe to call twice, and without `load`."""


class VadStream(Protocol):
    """The VAD's memory of one call."""

    def probability(self, window: Pcm) -> Awaitable[float]:
        """Return how likely the window holds speech, 0 to 1. `window`: int16, shape (window_samples,), 16 kHz."""


class Vad(Loadable, Protocol):
    """Finds speech."""

    window_samples: int

    def open(self) -> VadStream:
        """Return a fresh stream for one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What helps a recogniser.

    Attributes:
        language: BCP 47, or None: the engine's own.
        prompt: text as it might have gone before.
        vocabulary: words and phrases that are likely.
    """

    language: str | None = None
    prompt: str | None = None
    vocabulary: tuple[str, ...] = ()


class Asr(Loadable, Protocol):
    """Turns one utterance into words."""

    def transcribe(self, audio: AsyncIterator[AudioChunk], hints: Hints) -> AsyncGenerator[Transcript, None]:
        """Yield partial transcripts while `audio` lasts, then exactly one final.

        Args:
            audio: one utterance, mono 16 kHz, ended by exhaustion. The engine reads it in its own time; chunks of
                any length.
            hints: what helps.

        Raises:
            EngineError: the model failed; no final follows.
        """


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the language model may ask the client to run. `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRequest:
    """All that a language model needs for one reply.

    Attributes:
        call_id: which call asks; a rule-based agent keeps its place by the items, never by this.
        items: the conversation so far; a cut reply shows only what was heard.
        instructions: what kind of agent to be.
        tool_choice: `auto`, `none`, `required`, or the name of one tool.
        max_tokens: the most to write; None: the engine's own limit.
        temperature: 0 to 2; None: the engine's own.
    """

    items: tuple[Item, ...]
    call_id: str = ""
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A little more text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A little more of a tool call. The first delta of a call carries its `name`; the others None."""

    call_id: str
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reply. `length`: cut short by max_tokens."""

    reason: Literal["stop", "tool_calls", "length", "content_filter"]


LlmDelta: TypeAlias = TextDelta | ToolCallDelta | Usage | Finished


class Llm(Loadable, Protocol):
    """Answers."""

    def reply(self, request: LlmRequest) -> AsyncGenerator[LlmDelta, None]:
        """Yield deltas, then exactly one `Finished`.

        Closing the generator closes the request upstream.

        Raises:
            EngineError: the model failed; no `Finished` follows.
        """


@dataclass(frozen=True, slots=True)
class Voice:
    """Who speaks. `speed`: 1 is the voice's own, 0.25 to 4."""

    name: str = "default"
    speed: float = 1.0
    language: str = "en"


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """A stretch of made speech.

    Attributes:
        pcm: int16, shape (n,), at the engine's `rate_hz`.
        words: the words that begin in or shortly after this chunk, times in milliseconds from the start of the text's
            speech. Together, over all chunks, the words of the text in order; empty where the engine has no times.
        clip: of which `pcm` is the sound; None: this is made for the first time.
    """

    pcm: Pcm
    words: tuple[Word, ...] = field(default=())
    clip: Clip | None = None


class Tts(Loadable, Protocol):
    """Speaks."""

    rate_hz: int

    def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        """Yield the speech of `text` (a sentence or a clause) as it is made.

        The words' texts stand in `text` in that order, so that what was heard can be cut out of what was written.
        Closing the generator stops the synthesis.

        Raises:
            EngineError: the voice failed.
        """
