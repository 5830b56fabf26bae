"""One reply of the agent: think (words), speak (sound), follow (what has been heard of it).

    think    LLM -> text, cut into pieces             written, told through ReplyGrew
    speak    pieces -> TTS -> the playout             waits for room; swallowed once the floor is lost
    follow   the playout's ledger                     ReplySounded, ReplyHeardTo, the end

Losing the floor silences a reply; only cancelling its task ends its work. A reply changes nothing of the call: it
holds what it has made, and posts that there is something to see.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from media_server.audio.chunk import silence
from media_server.audio.playout import Floor, Mark, Playout
from media_server.audio.resample import Resampler
from media_server.conversation import FunctionCall, Latency, Modality, Usage, new_id
from media_server.dialogue.reading import Reading, SpokenTo
from media_server.dialogue.sentences import Piece, Sentences
from media_server.engines.protocols import Finished, LlmDelta, TextDelta, ToolCallDelta, Tts, Voice
from media_server.errors import EngineError
from media_server.events import ReplyStatus
from media_server.session.inbox import Happening, ReplyGrew, ReplyHeardTo, ReplyMade, ReplySounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Mouth:
    """What a reply speaks with: the voice, the way to the ear, and their limits.

    Attributes:
        free: set once the reply before this one is over and the floor may be taken.
    """

    tts: Tts
    voice: Voice
    playout: Playout
    free: asyncio.Event
    first_audio_timeout_s: float
    text_limit_bytes: int


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """When the stages of a turn were reached, in seconds on the loop's clock; None: not reached."""

    speech_end_s: float | None = None
    stopped_s: float | None = None
    final_s: float | None = None
    asked_s: float | None = None
    first_token_s: float | None = None
    to_voice_s: float | None = None
    first_audio_s: float | None = None
    first_packet_s: float | None = None

    def latency(self) -> Latency:
        """Return the stages' times."""
        return Latency(
            endpointing_ms=_ms(self.speech_end_s, self.stopped_s),
            asr_final_ms=_ms(self.stopped_s, self.final_s),
            llm_first_token_ms=_ms(self.asked_s, self.first_token_s),
            tts_first_audio_ms=_ms(self.to_voice_s, self.first_audio_s),
            first_packet_ms=_ms(self.stopped_s, self.first_packet_s),
            voice_to_voice_ms=_ms(self.speech_end_s, self.first_packet_s),
        )


class Reply:
    """What the agent is saying.

    Attributes:
        written: all text so far.
        calls: the tools that it asks for; none if it broke off, for then the last one may be half a call.
        shown_chars: how much of `written` the client has been shown.
        floor: its right to the playout, once it has it.
        over: set when all its work has ended, or it was cut: the floor is free for the next.
        status: how it ended, once it has.
        failure: what went wrong, for the log; what the caller is told is `apology`.
    """

    def __init__(
        self,
        *,
        source: AsyncGenerator[LlmDelta, None],
        modality: Modality,
        mouth: Mouth | None,
        apology: str,
        post: Callable[[Happening], None],
        stopwatch: Stopwatch,
    ) -> None:
        """Prepare a reply.

        Args:
            source: what to say.
            modality: whether it is told as speech or as text.
            mouth: None: nothing is spoken.
            apology: said if the source fails before its first word; told if anything fails.
            post: takes what happens.
            stopwatch: of the turn.
        """
        self.id = new_id("resp")
        self.item_id = new_id("item")
        self.modality = modality
        self.mouth = mouth
        self.stopwatch = stopwatch
        self.written = ""
        self.calls: list[FunctionCall] = []
        self.usage: Usage | None = None
        self.status: ReplyStatus = "completed"
        self.reason: str | None = None
        self.failure: str | None = None
        self.shown_chars = 0
        self.floor: Floor | None = None
        self.over = asyncio.Event()
        self.apology = apology
        self._source = source
        self._post = post
        self._grown = False
        self._pieces: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._thought = False
        self._piece_came = asyncio.Event()

    def take_growth(self) -> str:
        """Return the text that has come since the last call."""
        self._grown = False
        delta = self.written[self.shown_chars :]
        self.shown_chars = len(self.written)
        return delta

    async def run(self) -> None:
        """Make the reply and see it to its end. Cancellation stops the model and the voice at once."""
        try:
            await self._make()
        except asyncio.CancelledError as error:
            # Only the garbage collector, which is seldom asked, would find a TaskGroup and the error that it raised: in
            # Python 3.11 to 3.13 they hold each other (taskgroups.py, `propagate_cancellation_error`).
            error.__traceback__ = None
            raise

    async def _make(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._think(), name=f"think {self.id}")
            if self.mouth is not None:
                await self.mouth.free.wait()
                self.floor = self.mouth.playout.take_floor(self.id)
                tasks.create_task(self._speak(self.mouth, self.floor), name=f"speak {self.id}")
                tasks.create_task(self._follow(self.mouth, self.floor), name=f"follow {self.id}")

    # --- think ---

    async def _think(self) -> None:
        sentences = Sentences()
        try:
            async with aclosing(self._source) as deltas:
                async for delta in deltas:
                    self._take(delta, sentences)
                    if self.status == "incomplete":
                        self.calls.clear()
                        break
        except EngineError as error:
            self._fail(error)
            self.calls.clear()
            if not self.written:
                self._write(self.apology, sentences)
        self._hand_over(sentences.flush())
        self._thought = True
        self._piece_came.set()
        if self.mouth is None:
            self._post(ReplyMade(self.id))

    def _take(self, delta: LlmDelta, sentences: Sentences) -> None:
        match delta:
            case TextDelta(text):
                self._write(text, sentences)
            case ToolCallDelta():
                self._take_call(delta)
            case Usage():
                self.usage = delta
            case Finished(reason="length"):
                self.status, self.reason = "incomplete", "max_output_tokens"
            case Finished(reason="content_filter"):
                self.status, self.reason = "incomplete", "content_filter"
            case Finished():
                pass

    def _take_call(self, delta: ToolCallDelta) -> None:
        if delta.name is not None:
            self.calls.append(
                FunctionCall(id=new_id("item"), call_id=delta.call_id, name=delta.name, arguments=delta.arguments)
            )
            return
        for at, call in enumerate(self.calls):
            if call.call_id == delta.call_id:
                arguments = call.arguments + delta.arguments
                self.calls[at] = FunctionCall(id=call.id, call_id=call.call_id, name=call.name, arguments=arguments)

    def _write(self, text: str, sentences: Sentences) -> None:
        if self.stopwatch.first_token_s is None:
            self.stopwatch.first_token_s = asyncio.get_running_loop().time()
        self.written += text
        if not self._grown:
            self._grown = True
            self._post(ReplyGrew(self.id))
        self._hand_over(sentences.push(text))

    def _hand_over(self, pieces: list[Piece]) -> None:
        if self.mouth is None:
            return
        for piece in pieces:
            self._waiting_bytes += len(piece.text.encode())
            self._pieces.append(piece)
            self._piece_came.set()
        if self._waiting_bytes > self.mouth.text_limit_bytes and self.status == "completed":
            self.status, self.reason = "incomplete", "max_output_tokens"

    def _fail(self, error: EngineError) -> None:
        self.status, self.reason, self.failure = "failed", error.code, str(error)

    # --- speak ---

    async def _speak(self, mouth: Mouth, floor: Floor) -> None:
        try:
            while (piece := await self._next_piece()) is not None:
                await _Speaker(mouth, floor, piece, self.stopwatch).speak()
        except EngineError as error:
            # The text is still shown: the reply is written, if not spoken.
            self._fail(error)
        floor.finish()
        while not self._thought:
            await self._next_piece()
        self._post(ReplyMade(self.id))

    async def _next_piece(self) -> Piece | None:
        while not self._pieces:
            if self._thought:
                return None
            self._piece_came.clear()
            await self._piece_came.wait()
        piece = self._pieces.popleft()
        self._waiting_bytes -= len(piece.text.encode())
        return piece

    # --- follow ---

    async def _follow(self, mouth: Mouth, floor: Floor) -> None:
        if not await mouth.playout.started(floor):
            return
        self.stopwatch.first_packet_s = asyncio.get_running_loop().time()
        self._post(ReplySounded(self.id))
        n_chars = 0
        while (heard := await mouth.playout.progressed(floor, n_chars)) is not None:
            n_chars = heard
            self._post(ReplyHeardTo(self.id, n_chars))


class _Speaker:
    """Speaks one piece into the playout."""

    def __init__(self, mouth: Mouth, floor: Floor, piece: Piece, stopwatch: Stopwatch) -> None:
        self._mouth = mouth
        self._floor = floor
        self._piece = piece
        self._stopwatch = stopwatch
        self._reading = Reading(piece.text, piece.start)
        self._begin_samples = 0

    async def speak(self) -> None:
        """Return when the piece is in the playout, or the floor is lost."""
        mouth, floor, watch = self._mouth, self._floor, self._stopwatch
        loop = asyncio.get_running_loop()
        if watch.to_voice_s is None:
            watch.to_voice_s = loop.time()
        resampler = Resampler(mouth.tts.rate_hz, mouth.playout.rate_hz)
        floor.align()
        self._begin_samples = floor.written_samples
        async with aclosing(mouth.tts.speak(self._piece.text, mouth.voice)) as chunks:
            while True:
                try:
                    async with asyncio.timeout(mouth.first_audio_timeout_s):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    raise EngineError(f"the voice made no sound within {mouth.first_audio_timeout_s:g} s") from None
                if chunk is None:
                    break
                if watch.first_audio_s is None:
                    watch.first_audio_s = loop.time()
                marks = self._marks(self._reading.follow(chunk.words))
                floor.write(resampler.push(chunk.pcm), marks, clip=chunk.clip)
                if not await mouth.playout.room(floor):
                    return
        floor.write(resampler.push(silence(0), last=True))
        duration_ms = (floor.written_samples - self._begin_samples) * 1000 // mouth.playout.rate_hz
        guessed = [] if self._reading.timed else self._reading.guess(duration_ms)
        floor.write(silence(0), self._marks([*guessed, self._reading.end(duration_ms)]))

    def _marks(self, spoken: list[SpokenTo]) -> tuple[Mark, ...]:
        rate_hz = self._mouth.playout.rate_hz
        return tuple(Mark(self._begin_samples + to.at_ms * rate_hz // 1000, to.n_chars) for to in spoken)


def _ms(from_s: float | None, to_s: float | None) -> float | None:
    return None if from_s is None or to_s is None else (to_s - from_s) * 1000
