"""The ear of a call: sound in, milestones and transcripts out. Time is sound received."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import aclosing

from media_server.audio.chunk import HEARING_HZ, AudioChunk, Pcm, silence
from media_server.audio.live_queue import LiveQueue
from media_server.dialogue.endpointing import Endpointing, EndpointingRules, Milestone, SpeechEnded, SpeechLikely
from media_server.engines.protocols import Asr, Hints, Vad, VadStream
from media_server.errors import EngineError
from media_server.session.inbox import Happening, Passed, Recognised, RecognitionFailed
from media_server.session.utterance import Utterance


class Ear:
    """Hears one caller."""

    def __init__(
        self,
        *,
        sound: LiveQueue,
        vad: Vad,
        rules: EndpointingRules,
        prefix_ms: int,
        post: Callable[[Happening], None],
        pass_on: Callable[[AudioChunk], None] | None = None,
    ) -> None:
        """Prepare to hear.

        Args:
            sound: 16 kHz mono, as it arrives.
            vad: finds speech.
            rules: what counts as speech; may be changed at any time through `rules`.
            prefix_ms: how much sound from before the onset the recogniser gets.
            post: takes what happens.
            pass_on: gets all sound as it comes, before it is judged.
        """
        self.prefix_ms = prefix_ms
        self.recent: Pcm = silence(0)
        self._sound = sound
        self._vad = vad
        self._stream: VadStream = vad.open()
        self._endpointing = Endpointing(rules)
        self._manual = False
        self._post = post
        self._pass_on = pass_on
        self._window = silence(vad.window_samples)
        self._filled = 0
        self._window_pts = 0
        self._arrivals: deque[tuple[int, float]] = deque()
        self._past: deque[AudioChunk] = deque()
        self._past_samples = 0
        self._utterance: Utterance | None = None
        self._cleared_pts = 0
        self.first_sound = asyncio.Event()

    @property
    def rules(self) -> EndpointingRules:
        """Return what counts as speech."""
        return self._endpointing.rules

    @rules.setter
    def rules(self, rules: EndpointingRules) -> None:
        self._endpointing.rules = rules

    @property
    def manual(self) -> bool:
        """Return whether the client ends the turns, and not the ear. A change of it gives up an utterance under way."""
        return self._manual

    @manual.setter
    def manual(self, manual: bool) -> None:
        self._manual = manual
        self._endpointing = Endpointing(self.rules)
        if self._utterance is not None:
            self._utterance.close()
            self._utterance = None

    @property
    def speaking(self) -> bool:
        """Return whether the caller is probably speaking."""
        return self._endpointing.speaking

    async def listen(self) -> None:
        """Hear until cancelled."""
        while True:
            chunk, arrived_s = await self._sound.get()
            self.first_sound.set()
            self.recent = chunk.pcm
            if self._pass_on is not None:
                self._pass_on(chunk)
            await self._hear(chunk, arrived_s)

    def commit(self) -> Utterance | None:
        """Return all sound since the last commit or clear as one ended utterance; None if there is less than 100 ms.

        For clients that end their turns themselves. Where the ear does, a turn under way ends now: None as well.
        """
        if self._utterance is not None:
            for milestone in self._endpointing.end():
                self._pass(milestone)
            return None
        chunks = [chunk for chunk in self._past if chunk.end_pts > self._cleared_pts]
        if sum(len(chunk.pcm) for chunk in chunks) < HEARING_HZ // 10:
            return None
        utterance = Utterance(chunks[0].pts)
        for chunk in chunks:
            utterance.push(chunk)
        utterance.end_pts = chunks[-1].end_pts
        utterance.arrived_s = utterance.speech_end_s = self._arrivals[-1][1]
        utterance.close()
        self.clear()
        return utterance

    def clear(self) -> None:
        """Drop what was heard since the last commit."""
        self._cleared_pts = self._past[-1].end_pts if self._past else 0

    async def _hear(self, chunk: AudioChunk, arrived_s: float) -> None:
        self._keep(chunk, arrived_s)
        if self._utterance is not None:
            self._utterance.push(chunk)
        taken = 0
        while taken < len(chunk.pcm):
            if self._filled == 0:
                self._window_pts = chunk.pts + taken
            take = min(len(self._window) - self._filled, len(chunk.pcm) - taken)
            self._window[self._filled : self._filled + take] = chunk.pcm[taken : taken + take]
            self._filled += take
            taken += take
            if self._filled == len(self._window):
                self._filled = 0
                probability = await self._stream.probability(self._window)
                if not self._manual:
                    self._judge(probability, self._window_pts + len(self._window))

    def _judge(self, probability: float, end_pts: int) -> None:
        for milestone in self._endpointing.window(probability, self._window_pts, end_pts):
            self._pass(milestone)

    def _pass(self, milestone: Milestone) -> None:
        if isinstance(milestone, SpeechLikely):
            self._open(milestone.start_pts)
        utterance = self._utterance
        if isinstance(milestone, SpeechEnded) and utterance is not None:
            utterance.end_pts = milestone.end_pts
            utterance.speech_ms = milestone.speech_ms
            utterance.speech_end_s = self._arrival_of(milestone.end_pts - 1)
            utterance.close()
            self._utterance = None
        self._post(Passed(milestone, utterance, self._arrival_of(milestone.start_pts)))

    def _open(self, start_pts: int) -> None:
        self._utterance = utterance = Utterance(start_pts)
        utterance.arrived_s = self._arrival_of(start_pts)
        from_pts = start_pts - self.prefix_ms * HEARING_HZ // 1000
        for chunk in self._past:
            if chunk.end_pts > from_pts:
                utterance.push(chunk)

    def _keep(self, chunk: AudioChunk, arrived_s: float) -> None:
        self._past.append(chunk)
        self._past_samples += len(chunk.pcm)
        self._arrivals.append((chunk.end_pts, arrived_s))
        # A client that commits by itself gets all since its last commit, up to what a recogniser may hold.
        limit = 60 * HEARING_HZ if self._manual else (self.prefix_ms + 500) * HEARING_HZ // 1000
        while self._past_samples > limit:
            self._past_samples -= len(self._past.popleft().pcm)
        while len(self._arrivals) > 3200:  # 64 s of packets: the longest utterance and its silence
            self._arrivals.popleft()

    def _arrival_of(self, pts: int) -> float:
        # Near the end: what is asked for is mostly recent.
        arrived_s = self._arrivals[-1][1] if self._arrivals else 0.0
        for end_pts, at_s in reversed(self._arrivals):
            if end_pts <= pts:
                break
            arrived_s = at_s
        return arrived_s


async def transcribe(
    utterance: Utterance, asr: Asr, hints: Hints, post: Callable[[Happening], None], *, final_timeout_s: float
) -> None:
    """Post the transcripts of an utterance as they come; the final one within `final_timeout_s` of its end."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            utterance.on_close = lambda: limit.reschedule(loop.time() + final_timeout_s)
            if utterance.closed:
                utterance.on_close()
            final = False
            async with aclosing(asr.transcribe(utterance.chunks(), hints)) as transcripts:
                async for transcript in transcripts:
                    final = transcript.final
                    post(Recognised(utterance, transcript))
            if not final:
                raise EngineError("the recogniser gave no final transcript")
    except TimeoutError:
        post(RecognitionFailed(utterance, "asr_timeout", f"no final transcript within {final_timeout_s:g} s"))
    except EngineError as error:
        post(RecognitionFailed(utterance, error.code, str(error)))
    finally:
        utterance.on_close = None
