"""The caller's manners: say one thing, listen to the reply to its end, then say the next."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from media_server.audio.chunk import FRAME_MS, Pcm
from media_server.audio.levels import level_dbfs
from media_server.caller.client import CallClient
from media_server.caller.ear import AUDIBLE_DBFS
from media_server.caller.microphone import FRAME_SAMPLES
from media_server.caller.report import CallReport, report_turn
from media_server.errors import PeerGoneError

_GREETING_WITHIN_S = 1.5
"""An agent that greets has begun by then; one that has not is waiting for us."""

_SPEECH_RANGE_DB = 30.0
"""What lies further below the loudest frame is the room, not the voice."""

_QUIET_BEFORE_S = 0.2


@dataclass(frozen=True, slots=True)
class Saying:
    """One thing to say: a recording (int16, shape (n,), 24 kHz), or a typed line where there is none."""

    name: str
    pcm: Pcm | None = None


@dataclass(slots=True)
class Attention:
    """Whether the agent has had its say. Told every event of a turn in order."""

    _speaking: bool = False
    _owed: bool = False
    _replied: bool = False
    _answered: bool = False
    _active: set[str] = field(default_factory=set)
    _sounding: set[str] = field(default_factory=set)
    _unheard: set[str] = field(default_factory=set)
    _drained: set[str] = field(default_factory=set)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        match event.get("type"):
            case "input_audio_buffer.speech_started":
                self._speaking = True
            case "input_audio_buffer.speech_stopped":
                self._speaking, self._owed = False, True
            case "conversation.item.input_audio_transcription.completed":
                # Without a word there is nothing to reply to.
                self._owed = self._owed and bool(str(event["transcript"]).strip())
            case "conversation.item.input_audio_transcription.failed":
                self._owed = False
            case "response.created":
                self._owed = False
                self._active.add(str(event["response"]["id"]))
            case "response.done":
                self._finish(event["response"])
            case "output_audio_buffer.started":
                self._sounding.add(str(event["response_id"]))
            case "output_audio_buffer.stopped" | "output_audio_buffer.cleared":
                self._drain(str(event["response_id"]))

    @property
    def begun(self) -> bool:
        """Return whether a reply was begun."""
        return bool(self._active or self._sounding or self._replied)

    @property
    def settled(self) -> bool:
        """Return whether a whole reply was heard, and nothing more is under way."""
        under_way = self._speaking or self._owed or self._active or self._sounding or self._unheard
        return self._replied and not under_way

    @property
    def answered(self) -> bool:
        """Return whether a reply came that did not fail; ask when it has settled."""
        return self._answered

    def _finish(self, response: Mapping[str, Any]) -> None:
        reply_id = str(response["id"])
        self._active.discard(reply_id)
        if response.get("status") != "cancelled":
            self._replied = True
            self._answered = self._answered or response.get("status") != "failed"
            if _is_spoken(response) and reply_id not in self._drained:
                self._unheard.add(reply_id)

    def _drain(self, reply_id: str) -> None:
        self._sounding.discard(reply_id)
        self._unheard.discard(reply_id)
        self._drained.add(reply_id)


async def converse(
    client: CallClient, sayings: Sequence[Saying], report: CallReport, *, wait_s: float, wait_greeting: bool
) -> None:
    """Say one thing after the other, each after the reply to the one before; fill `report` as it goes.

    Args:
        client: a call under way.
        sayings: what to say.
        report: gets a turn for each saying, also for the one that was cut short by cancellation.
        wait_s: how long a reply may take, from the last sound sent to the last sound heard.
        wait_greeting: whether to let the agent greet first.

    Raises:
        PeerGoneError: the call ended before its time.
    """
    if wait_greeting:
        await _let_greet(client, wait_s)
        greeting = report_turn("", [received.event for received in client.received], answered=True, heard_ms=None)
        report.greeting = " ".join(reply.text for reply in greeting.replies)
    for saying in sayings:
        mark = client.n_received
        spoken_s: float | None = None
        answered = False
        try:
            spoken_s = await _say(client, saying)
            answered = await _listen(client, mark, wait_s)
        finally:
            events = [received.event for received in client.received[mark:]]
            heard_ms = _heard_ms(client, spoken_s)
            report.turns.append(report_turn(saying.name, events, answered=answered, heard_ms=heard_ms))


def trailing_samples(pcm: Pcm) -> int:
    """Return how many samples of silence, or of the room, end int16 `pcm`, shape (n,), at 24 kHz."""
    n_frames = len(pcm) // FRAME_SAMPLES
    levels = np.array([level_dbfs(pcm[i * FRAME_SAMPLES : (i + 1) * FRAME_SAMPLES]) for i in range(n_frames)])
    if not n_frames:
        return 0
    voiced = np.flatnonzero(levels >= max(AUDIBLE_DBFS, float(levels.max()) - _SPEECH_RANGE_DB))
    return len(pcm) - (int(voiced[-1]) + 1) * FRAME_SAMPLES if len(voiced) else 0


async def _let_greet(client: CallClient, wait_s: float) -> None:
    attention = Attention()
    if await _attend(client, attention, 0, _GREETING_WITHIN_S, until_begun=True):
        await _attend(client, Attention(), 0, wait_s)


async def _say(client: CallClient, saying: Saying) -> float:
    """Return the loop time at which the last of it that is to be heard was sent."""
    if saying.pcm is None:
        client.say_in_writing(saying.name)
        return asyncio.get_running_loop().time()
    silence_s = trailing_samples(saying.pcm) / FRAME_SAMPLES * FRAME_MS / 1000
    return await client.play(saying.pcm) - silence_s


async def _listen(client: CallClient, after: int, wait_s: float) -> bool:
    attention = Attention()
    return await _attend(client, attention, after, wait_s) and attention.answered


async def _attend(
    client: CallClient, attention: Attention, after: int, wait_s: float, *, until_begun: bool = False
) -> bool:
    """Return whether the agent had its say (or began to) within `wait_s`."""
    position = after
    try:
        async with asyncio.timeout(wait_s):
            while True:
                # All that has come is taken first: a reply that settled may have been followed by more speech.
                while position < client.n_received:
                    attention.tell(client.received[position].event)
                    position += 1
                if attention.settled or (until_begun and attention.begun):
                    return True
                if client.ended:
                    raise PeerGoneError(f"{client.url}: the server ended the call")
                await client.wait_for_more(position)
    except TimeoutError:
        return False


def _is_spoken(response: Mapping[str, Any]) -> bool:
    """Return whether a finished reply holds anything that is to be heard."""
    contents = (part for item in response.get("output") or [] for part in item.get("content") or [])
    return any(str(part.get("transcript") or "").strip() for part in contents)


def _heard_ms(client: CallClient, spoken_s: float | None) -> float | None:
    if spoken_s is None:
        return None
    before_s = client.ear.last_sound_s(spoken_s)
    after_s = client.ear.first_sound_s(spoken_s)
    if after_s is None or (before_s is not None and spoken_s - before_s < _QUIET_BEFORE_S):
        return None
    return (after_s - spoken_s) * 1000
