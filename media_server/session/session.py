"""One call, from the first packet to the last.

Its tasks, all children of one TaskGroup:

    media       one a connection: sound in, sound out
    listen      the ear: milestones of the caller's speech
    transcribe  one an utterance: words
    reply       one a reply: think, speak, follow
    commands    one a channel
    tick        levels and limits
    converse    reads the inbox, and alone changes the state; never waits for a reply

What happens to a turn of the caller:

    noticed -> (duck) -> likely -> recognise -> BeginTurn: speech_started -> ... -> EndTurn: speech_stopped, committed,
    item added -> final transcript -> a reply, once neither side is speaking

What happens to the call when its connection is lost: `line.py`.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from contextlib import AsyncExitStack, aclosing
from itertools import islice
from typing import Any, Protocol

from media_server.audio.chunk import HEARING_HZ
from media_server.audio.levels import FLOOR_DBFS, level_dbfs
from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.config import Config
from media_server.conversation import Conversation, SpokenMessage, Transcript
from media_server.dialogue.endpointing import EndpointingRules
from media_server.dialogue.turn_taking import Action, Actions, Agent, TurnTaking
from media_server.engines.protocols import Asr, Hints, Llm, Tts, Vad
from media_server.errors import ClientError, NotFoundError, ParleyError
from media_server.events import (
    CallStarted,
    Channel,
    DigitPressed,
    ErrorHappened,
    Event,
    ItemAdded,
    LevelsMeasured,
    PlayoutDucked,
    Settings,
    SoundCommitted,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptFailed,
    TranscriptGrew,
    TranscriptGuessed,
    error_event,
)
from media_server.metrics import Metrics
from media_server.session.barge_in import BargeInClock
from media_server.session.commands import obey
from media_server.session.echo import Echo
from media_server.session.inbox import (
    Asked,
    ChannelClosed,
    ChannelOpened,
    Connected,
    Disconnected,
    GreetingDue,
    HungUp,
    Inbox,
    Passed,
    Recognised,
    RecognitionFailed,
    ReplyEnded,
    ReplyGrew,
    ReplyHeardTo,
    ReplyMade,
    ReplySounded,
    SilenceReached,
    Ticked,
)
from media_server.session.line import Line
from media_server.session.listen import Ear, transcribe
from media_server.session.media import Connection, Media
from media_server.session.replies import Replies
from media_server.session.reply import Stopwatch
from media_server.session.utterance import Utterance

logger = logging.getLogger(__name__)

INAUDIBLE_MS = 700
"""So much speech without one recognised word is answered all the same: the caller waits for an answer."""

CHANNEL_WAIT_S = 1.5
"""How long a greeting waits for somebody who reads along, once sound flows."""

ITEMS_SHOWN = 500
"""So many of the last items are told to a new channel; it could not take many more at once."""


class Engines(Protocol):
    """The machines that a call works with."""

    @property
    def vad(self) -> Vad:
        """Return what finds speech."""

    @property
    def asr(self) -> Asr:
        """Return what turns it into words."""

    @property
    def llm(self) -> Llm:
        """Return what answers."""

    @property
    def tts(self) -> Tts:
        """Return what speaks."""

    @property
    def greeting(self) -> str:
        """Return what the agent says first; empty: nothing."""


class Session:
    """A call: the conversation, the sound in, the playout out, and who may speak."""

    def __init__(
        self, *, engines: Engines, config: Config, settings: Settings, metrics: Metrics, id_prefix: str = "rtc_"
    ) -> None:
        """Prepare a call; `id_prefix`: how its id begins."""
        self.id = id_prefix + secrets.token_hex(12)
        self.resume_token = secrets.token_urlsafe(24)
        """Who knows it may come back to the call."""
        self.settings = settings
        self.conversation = Conversation()
        self.playout = Playout(ahead_ms=config.playout.ahead_ms, duck_db=config.barge_in.duck_db)
        self.turns = TurnTaking()
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._sound = LiveQueue(config.webrtc.live_queue_ms)
        self._inbox = Inbox()
        self._line = Line(call_id=self.id, hearing=self._sound, playout=self.playout, post=self._inbox.post)
        self._channels: list[Channel] = []
        self._waiting_channels: list[Channel] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._children: set[asyncio.Task[None]] = set()
        self._listened = asyncio.Event()
        self._utterance: Utterance | None = None
        self._barge_in = BargeInClock(metrics)
        self._reply_due: Stopwatch | None = None
        self._greeted = False
        self._greet_again = False  # nothing of the greeting was heard, and nothing else was said: for who comes back
        self._over = False  # nothing new begins: the call is ending, or a task of it has failed
        self._active_s = 0.0
        self._dropped_ms = 0.0
        self._echo = Echo(self.playout) if config.call.mode == "echo" else None
        self.ear = Ear(
            sound=self._sound,
            vad=engines.vad,
            rules=self._rules(),
            prefix_ms=self._prefix_ms(),
            post=self._inbox.post,
            pass_on=self._echo.hear if self._echo else None,
        )
        self.replies = Replies(
            call_id=self.id,
            llm=engines.llm,
            tts=engines.tts,
            conversation=self.conversation,
            playout=self.playout,
            config=config,
            publish=self.publish,
            post=self._inbox.post,
            start=self._start,
        )
        self.change(settings)

    # --- what is attached ---

    @property
    def media(self) -> Media | None:
        """Return what carries the sound now; None: nobody is there."""
        return self._line.connection.media if self._line.connection is not None else None

    def attach_media(self, media: Media) -> None:
        """Say where sound comes from and goes to: from now on, or from when it stands, if there is another.

        Raises:
            NotFoundError: the call is over; the media is not taken, and whoever made it closes it.
        """
        if self._over:
            raise NotFoundError(f"the call {self.id} is over", param="call_id")
        self._line.attach(media)

    def attach_channel(self, channel: Channel) -> None:
        """Let somebody read along and ask. At any time; once the call is over, it is too late."""
        if self._tasks is None:
            self._waiting_channels.append(channel)
        elif not self._over:
            self._start(self._take_commands(channel), f"commands {self.id}")

    @property
    def announced_id(self) -> str | None:
        """Return the id that was told of an item that is not there yet: what the caller is saying."""
        return self._utterance.item_id if self._utterance is not None and self._utterance.announced else None

    def hang_up(self, reason: str) -> None:
        """End the call soon; does nothing once it is over."""
        self._inbox.post(HungUp(reason))

    # --- life ---

    async def run(self) -> str:
        """Live until the call is over; return why it ended. Cancellation ends it at once."""
        begun_s = self._active_s = asyncio.get_running_loop().time()
        reason = ""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._line.open(self._start)
                self._start(self.ear.listen(), f"listen {self.id}")
                self._start(self._tick(begun_s), f"tick {self.id}")
                self._start(self._wait_to_greet(), f"greet {self.id}")
                for channel in self._waiting_channels:
                    self._start(self._take_commands(channel), f"commands {self.id}")
                try:
                    reason = await self._converse()
                except Exception:
                    self._fail()
                    raise
                finally:
                    self._over = True
                self._inbox.close()
                self.replies.cut("client_cancelled")
                for child in tuple(self._children):
                    child.cancel()
        finally:
            self._over = True
            self._inbox.close()
            self.playout.cut()
            async with AsyncExitStack() as closing:
                for channel in self._channels:
                    closing.push_async_callback(channel.close)
                closing.push_async_callback(self._line.close)
            self.let_go()
        return reason

    def let_go(self) -> None:
        """Forget what knows the call, which is over or never began: the garbage collector is seldom asked."""
        self.replies.let_go()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        if self._tasks is None:
            raise RuntimeError("a call's tasks begin with the call")
        task = self._tasks.create_task(work, name=name)
        self._children.add(task)
        task.add_done_callback(self._child_ended)
        return task

    def _child_ended(self, task: asyncio.Task[None]) -> None:
        self._children.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fail()

    def _fail(self) -> None:
        """Tell that a mistake of ours ends the call, while there is a channel: it ends with the call's tasks."""
        if not self._over:
            self._over = True
            self.publish(ErrorHappened("server_error", ParleyError.code, "something went wrong; the call ends"))

    async def _take_commands(self, channel: Channel) -> None:
        self._inbox.post(ChannelOpened(channel))
        async with aclosing(channel.commands()) as commands:
            async for command in commands:
                asked = Asked(channel, command)
                self._inbox.post(asked)
                await asked.done.wait()
        self._inbox.post(ChannelClosed(channel))

    async def _wait_to_greet(self) -> None:
        if not self._config.call.greeting or not self._engines.greeting or self._echo is not None:
            return
        await self.ear.first_sound.wait()
        try:
            async with asyncio.timeout(CHANNEL_WAIT_S):
                await self._listened.wait()
        except TimeoutError:
            logger.info("%s: nobody reads along; the greeting is spoken all the same", self.id)
        await asyncio.sleep(self._config.call.greeting_after_ms / 1000)
        self._inbox.post(GreetingDue())

    async def _tick(self, begun_s: float) -> None:
        loop = asyncio.get_running_loop()
        period_s = 1 / self._config.call.levels_hz
        while True:
            await asyncio.sleep(period_s)
            self._inbox.post(Ticked())
            now_s = loop.time()
            if self._line.lost is not None:
                self._wait_for_another(period_s, now_s, *self._line.lost)
            if 0 < self._config.call.max_duration_s < now_s - begun_s:
                self.hang_up("the longest duration was reached")
            if 0 < self._config.call.idle_timeout_s < now_s - self._active_s:
                self.hang_up("nobody spoke")

    def _wait_for_another(self, period_s: float, now_s: float, lost_s: float, reason: str) -> None:
        self._line.hear_silence(period_s, now_s)
        if self._line.coming is None and now_s - lost_s > self._config.call.resume_s:
            self.hang_up(reason)

    # --- the one reader ---

    async def _converse(self) -> str:  # noqa: C901, PLR0912  (one flat table)
        while True:
            happening = await self._inbox.get()
            match happening:
                case HungUp(reason):
                    return reason
                case Asked():
                    self._obey(happening)
                case ChannelOpened(channel):
                    self._open(channel)
                case ChannelClosed(channel):
                    if channel in self._channels:
                        self._channels.remove(channel)
                case Connected(connection):
                    self._admit(connection)
                case Disconnected():
                    if self._ends_call(happening):
                        return happening.reason
                case Passed():
                    self._hear(happening)
                case Recognised(utterance, transcript):
                    self._recognised(utterance, transcript)
                case RecognitionFailed():
                    self._recognition_failed(happening)
                case ReplyGrew(reply_id):
                    self.replies.grew(reply_id)
                case ReplySounded(reply_id):
                    if self.replies.sounded(reply_id):
                        self._measure_reply(reply_id)
                case ReplyHeardTo(reply_id, n_chars):
                    self.replies.heard_to(reply_id, n_chars)
                case ReplyMade(reply_id):
                    self.replies.made(reply_id)
                case ReplyEnded(reply_id):
                    self._reply_ended(reply_id)
                case SilenceReached(at_s):
                    self._silence_reached(at_s)
                case GreetingDue():
                    self._greet()
                case DigitPressed():
                    self._active_s = asyncio.get_running_loop().time()
                    self.publish(happening)
                case Ticked():
                    self._measure_levels()

    def publish(self, event: Event) -> None:
        """Tell every channel."""
        for channel in self._channels:
            channel.send(event)

    def _open(self, channel: Channel) -> None:
        channel.send(CallStarted(self.id, self.settings))
        for item in islice(self.conversation, max(0, len(self.conversation) - ITEMS_SHOWN), None):
            previous_id = self.conversation.previous_id(item.id)
            channel.send(ItemAdded(item, previous_id, done=item.status != "in_progress"))
        self._channels.append(channel)
        self._listened.set()

    def _obey(self, asked: Asked) -> None:
        self._active_s = asyncio.get_running_loop().time()
        try:
            obey(self, asked.command)
        except ClientError as error:
            error.event_id = error.event_id or asked.command.event_id
            asked.channel.send(error_event(error))
        finally:
            asked.done.set()

    # --- the caller's connection ---

    def _admit(self, connection: Connection) -> None:
        """Let a media that stands carry the call, in the place of the one before."""
        if connection is not self._line.coming:
            return
        if self._line.connection is not None:
            self._fall_silent(self._line.connection.heard_s)
        if self._line.admit(connection):
            logger.info("%s: resumed", self.id)
            self._metrics.count("calls_resumed_total")
            self._active_s = connection.stood_s
            self._answer_what_waits()
            if self._greet_again and not self.turns.caller_talking and self.replies.agent is Agent.SILENT:
                self._greeted = True
                self.replies.say(self._engines.greeting, self.settings, Stopwatch())

    def _ends_call(self, gone: Disconnected) -> bool:
        """Return whether the end of a media is the end of the call; if not, wait for another."""
        carried = gone.connection is self._line.connection
        if self._line.ends_with(gone, resumable=self._config.call.resume_s > 0):
            return True
        if carried:
            logger.info("%s: lost: %s", self.id, gone.reason)
            self._fall_silent(gone.connection.heard_s)
        return False

    def _fall_silent(self, heard_s: float) -> None:
        """Cut the reply: the caller was last there at `heard_s`. What they heard nothing of is answered once more."""
        if self._echo is not None:
            return
        unanswered = self.replies.agent is Agent.THINKING
        self._set_ducked(False)
        self._barge_in.forget()
        self.replies.cut("client_cancelled")
        unanswered = self.replies.forget_after(heard_s) or unanswered
        detection = self.settings.turn_detection
        asked = any(isinstance(item, SpokenMessage) and item.role == "user" for item in self.conversation)
        if unanswered and asked and detection is not None and detection.create_reply and self._reply_due is None:
            self._reply_due = Stopwatch()
        self._greet_again = unanswered and self._greeted and not asked

    # --- the caller speaks ---

    def _hear(self, passed: Passed) -> None:
        if self._echo is not None:
            return
        if passed.utterance is not None:
            self._utterance = passed.utterance
        self._act(self.turns.hear(passed.milestone, self.replies.agent), passed.arrived_s)

    def _act(self, actions: Actions, arrived_s: float) -> None:
        for action in actions:
            match action:
                case Action.DUCK:
                    self._set_ducked(True)
                    self._barge_in.ducked(arrived_s, asyncio.get_running_loop().time())
                case Action.UNDUCK:
                    self._set_ducked(False)
                    self._barge_in.unducked()
                case Action.CUT_REPLY:
                    self._cut_reply(arrived_s)
                case Action.RECOGNISE if self._utterance is not None:
                    self._recognise(self._utterance)
                case Action.BEGIN_TURN if self._utterance is not None:
                    self._recognise(self._utterance)
                    self._announce(self._utterance)
                case Action.END_TURN:
                    self._end_turn()
                case Action.FORGET:
                    self._forget()

    def _set_ducked(self, ducked: bool) -> None:
        if ducked is self.playout.ducked:
            return
        reply_id = self.replies.audible_id
        if ducked:
            self.playout.duck()
        else:
            self.playout.unduck()
        if reply_id is not None:
            self.publish(PlayoutDucked(reply_id, ducked))

    def _cut_reply(self, arrived_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._utterance is not None:
            self._announce(self._utterance)
            self._utterance.cut_reply = True
        audible = self.replies.agent is Agent.AUDIBLE
        reply_id = self.replies.cut("turn_detected")
        self._reply_due = None
        if not audible or reply_id is None:
            self._barge_in.unducked()
            return
        self._barge_in.cut(reply_id, arrived_s, now_s)
        self._start(self._wait_for_silence(), f"silence {self.id}")

    async def _wait_for_silence(self) -> None:
        await self.playout.silent()
        self._inbox.post(SilenceReached(asyncio.get_running_loop().time()))

    def _silence_reached(self, at_s: float) -> None:
        measured = self._barge_in.silent(at_s, self.media.rtt_ms if self.media else None)
        if measured is not None:
            self.publish(measured)

    def _recognise(self, utterance: Utterance) -> None:
        if utterance.recognising:
            return
        utterance.recognising = True
        hints = Hints(language=self.settings.language or self._config.asr.language, prompt=self.settings.prompt)
        self._start(
            transcribe(
                utterance,
                self._engines.asr,
                hints,
                self._inbox.post,
                final_timeout_s=self._config.asr.final_timeout_s,
            ),
            f"transcribe {utterance.item_id}",
        )

    def _announce(self, utterance: Utterance) -> None:
        if utterance.announced:
            return
        utterance.announced = True
        self._active_s = asyncio.get_running_loop().time()
        self.publish(SpeechStarted(utterance.item_id, _pts_ms(utterance.start_pts)))

    def _end_turn(self) -> None:
        utterance, self._utterance = self._utterance, None
        if utterance is not None:
            self.publish(SpeechStopped(utterance.item_id, _pts_ms(utterance.end_pts)))
            self.commit(utterance)

    def commit(self, utterance: Utterance) -> None:
        """Make an ended utterance an item of the conversation; its words follow."""
        utterance.stopped_s = self._active_s = asyncio.get_running_loop().time()
        item = SpokenMessage(id=utterance.item_id, role="user", modality="audio", written=None)
        previous_id = self.conversation.add(item)
        self.publish(SoundCommitted(item.id, previous_id))
        self.publish(ItemAdded(item, previous_id, done=True))
        self._recognise(utterance)
        if utterance.failure is not None:
            self._tell_failure(utterance, utterance.failure)

    def _forget(self) -> None:
        if self._utterance is not None:
            self._utterance.close()
            self._utterance = None
        self._answer_what_waits()

    # --- the caller's words ---

    def _recognised(self, utterance: Utterance, transcript: Transcript) -> None:
        if utterance is self._utterance and transcript.text and self._config.barge_in.words_cut:
            self._act(self.turns.word(self.replies.agent), utterance.arrived_s)
        if not transcript.final:
            self._show_words(utterance, transcript)
        elif utterance.item_id in self.conversation:
            self._take_final(utterance, transcript)

    def _show_words(self, utterance: Utterance, transcript: Transcript) -> None:
        if not utterance.announced or not self.settings.transcribe:
            return
        delta = transcript.stable[len(utterance.shown) :]
        if delta and transcript.stable.startswith(utterance.shown):
            utterance.shown = transcript.stable
            self.publish(TranscriptGrew(utterance.item_id, delta))
        self.publish(TranscriptGuessed(utterance.item_id, transcript.stable, transcript.tail))

    def _take_final(self, utterance: Utterance, transcript: Transcript) -> None:
        text = transcript.text
        watch = Stopwatch(
            speech_end_s=utterance.speech_end_s,
            stopped_s=utterance.stopped_s,
            final_s=asyncio.get_running_loop().time(),
        )
        self.conversation.change(
            SpokenMessage(id=utterance.item_id, role="user", modality="audio", written=text),
        )
        if self.settings.transcribe:
            if text.startswith(utterance.shown) and len(text) > len(utterance.shown):
                self.publish(TranscriptGrew(utterance.item_id, text[len(utterance.shown) :]))
            self.publish(TranscriptCompleted(utterance.item_id, text, utterance.seconds))
        detection = self.settings.turn_detection
        wanted = detection is not None and detection.create_reply
        # Whoever silenced the agent is answered too: a cough must not leave both waiting for each other.
        if wanted and (text or utterance.cut_reply or utterance.speech_ms >= INAUDIBLE_MS):
            self._reply_due = watch
        self._answer_what_waits()

    def _recognition_failed(self, failed: RecognitionFailed) -> None:
        logger.warning("%s: the recogniser failed: %s", self.id, failed.message)
        if failed.utterance.item_id in self.conversation:
            self._tell_failure(failed.utterance, failed.code)
        else:
            # The caller is still speaking; it is told when the turn is over.
            failed.utterance.failure = failed.code

    def _tell_failure(self, utterance: Utterance, code: str) -> None:
        if self.settings.transcribe:
            self.publish(TranscriptFailed(utterance.item_id, code, "the words could not be recognised"))
        if self.replies.agent is Agent.SILENT and not self.turns.caller_talking and self._line.lost is None:
            self.replies.say(self._config.call.apology, self.settings, Stopwatch())

    # --- the agent answers ---

    def _answer_what_waits(self) -> None:
        """Answer a turn that waits for it, once neither side is speaking, and somebody is there."""
        if self._reply_due is None or self._line.lost is not None:
            return
        if self.turns.caller_talking or self.replies.agent is not Agent.SILENT:
            return
        watch, self._reply_due = self._reply_due, None
        self.replies.answer(self.settings, watch)

    def _reply_ended(self, reply_id: str) -> None:
        self._active_s = asyncio.get_running_loop().time()
        if self.replies.audible_id == reply_id:
            self._set_ducked(False)
            self._barge_in.unducked()
        self.replies.ended(reply_id)
        if self.replies.agent is not Agent.SILENT:
            return
        self._act(self.turns.reply_ended(), self._active_s)
        self._answer_what_waits()

    def _greet(self) -> None:
        if self._greeted or len(self.conversation) or self.turns.caller_talking:
            return
        if self._line.lost is not None:
            self._greet_again = True
        elif self.replies.agent is Agent.SILENT:
            self._greeted = True
            self.replies.say(self._engines.greeting, self.settings, Stopwatch())

    # --- figures ---

    def _measure_reply(self, reply_id: str) -> None:
        latency = self.replies.latency(reply_id)
        for name in latency.__slots__:
            value = getattr(latency, name)
            if value is not None:
                self._metrics.observe(name, value)

    def _measure_levels(self) -> None:
        now_s = asyncio.get_running_loop().time()
        echoing = self._echo is not None and self.ear.speaking
        if echoing or self.turns.caller_talking or self.replies.agent is not Agent.SILENT:
            self._active_s = now_s
        for reply_id in self.replies.stuck(now_s):
            logger.warning("%s: reply %s was cancelled and does not end", self.id, reply_id)
            self._metrics.count("replies_stuck_total")
        if self._sound.dropped_ms > self._dropped_ms:
            self._metrics.count("live_dropped_ms", self._sound.dropped_ms - self._dropped_ms)
            self._dropped_ms = self._sound.dropped_ms
        self.publish(
            LevelsMeasured(
                caller_dbfs=level_dbfs(self.ear.recent),
                agent_dbfs=level_dbfs(self.playout.recent) if self.playout.speaking else FLOOR_DBFS,
                caller_speaking=self.ear.speaking,
                agent_speaking=self.replies.agent is Agent.AUDIBLE,
            )
        )

    # --- settings ---

    def change(self, settings: Settings) -> None:
        """Put new settings in force. Who begins to end turns by itself gives up the one under way."""
        self.settings = settings
        self.ear.rules = self._rules()
        self.ear.prefix_ms = self._prefix_ms()
        self.turns.interruptible = settings.turn_detection is None or settings.turn_detection.interrupt
        if self.ear.manual == (settings.turn_detection is None):
            return
        self.ear.manual = settings.turn_detection is None
        self.turns.reset()
        if self._utterance is not None and self._utterance.announced:
            self.publish(SpeechStopped(self._utterance.item_id, _pts_ms(self._utterance.end_pts)))
        self._forget()

    def _rules(self) -> EndpointingRules:
        config, detection = self._config, self.settings.turn_detection
        threshold = config.vad.threshold
        if detection is not None and detection.threshold is not None:
            threshold = detection.threshold
        silence_ms = config.turn.silence_ms
        if detection is not None and detection.silence_ms is not None:
            silence_ms = detection.silence_ms
        return EndpointingRules(
            threshold=threshold,
            release_threshold=min(config.vad.release_threshold, threshold),
            notice_ms=config.barge_in.duck_ms,
            onset_ms=config.turn.onset_ms,
            clear_ms=config.barge_in.cut_ms,
            release_ms=config.barge_in.release_ms,
            silence_ms=silence_ms,
            max_utterance_ms=int(config.turn.max_utterance_s * 1000),
        )

    def _prefix_ms(self) -> int:
        detection = self.settings.turn_detection
        if detection is not None and detection.prefix_ms is not None:
            return detection.prefix_ms
        return self._config.turn.prefix_ms


def _pts_ms(pts: int) -> int:
    return pts * 1000 // HEARING_HZ
