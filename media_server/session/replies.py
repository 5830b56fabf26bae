"""The agent's side of a call: which replies there are, what of them is shown, and what happens when one is cut.

Called by the session's one reader alone. A reply is

    thinking    nothing of it has been heard
    audible     it holds the floor and has been heard
    made        all of it is written and in the playout: `response.done` has been told
    over        its task has ended
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from media_server.audio.playout import Floor, Heard, Playout
from media_server.config import Config
from media_server.conversation import (
    Conversation,
    FunctionCall,
    Item,
    ItemStatus,
    Latency,
    Modality,
    SpokenMessage,
    cut_message,
)
from media_server.dialogue.turn_taking import Agent
from media_server.engines.protocols import (
    Finished,
    Llm,
    LlmDelta,
    LlmRequest,
    TextDelta,
    Tool,
    Tts,
    Voice,
)
from media_server.errors import BadRequestError
from media_server.events import (
    Event,
    ItemTruncated,
    PlayoutCleared,
    PlayoutStarted,
    PlayoutStopped,
    ReplyArgumentsGrew,
    ReplyDone,
    ReplyItemAdded,
    ReplyItemDone,
    ReplyStarted,
    ReplyTextGrew,
    Settings,
    TurnMeasured,
    WordsSpoken,
)
from media_server.session.inbox import Happening, ReplyEnded
from media_server.session.line import Start
from media_server.session.reply import Mouth, Reply, Stopwatch

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 1.0
"""A reply that was cancelled so long ago and has not ended has an engine that hangs."""

SIGN_OF_LIFE_MS = 200
"""Who was there so shortly before the end of a reply has heard it: signs of life come late at times, as packets do."""

FLOORS_KEPT = 20
"""A client may truncate one of so many last replies; an older one was heard long ago."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    reply: Reply
    task: asyncio.Task[None]
    settings: Settings
    in_conversation: bool
    metadata: dict[str, Any] | None
    item_shown: bool = False
    sounded: bool = False
    made: bool = False
    cut_s: float | None = None


class Replies:
    """All replies of one call."""

    def __init__(  # noqa: PLR0913  (the seams at which a call hangs together)
        self,
        *,
        call_id: str,
        llm: Llm,
        tts: Tts,
        conversation: Conversation,
        playout: Playout,
        config: Config,
        publish: Callable[[Event], None],
        post: Callable[[Happening], None],
        start: Start,
    ) -> None:
        """Prepare the agent's side.

        Args:
            call_id: of the call, for the log.
            llm: answers.
            tts: speaks.
            conversation: of the call; replies are added to it.
            playout: the way to the caller's ear.
            config: of the process.
            publish: tells the client.
            post: gives a happening to the session's inbox.
            start: starts a task as a child of the call.
        """
        self._call_id = call_id
        self._llm = llm
        self._tts = tts
        self._conversation = conversation
        self._playout = playout
        self._config = config
        self._publish = publish
        self._post = post
        self._start = start
        self._entries: dict[str, _Entry] = {}
        self._floors: dict[str, Floor] = {}
        self._sounded_s: dict[str, float] = {}  # item -> when its first packet went out

    def let_go(self) -> None:
        """Forget the call, which is over: nobody is told any more."""
        self._publish = lambda _: None
        self._start = _too_late

    # --- what the agent is doing ---

    @property
    def agent(self) -> Agent:
        """Return what the caller notices of the agent."""
        live = [entry for entry in self._entries.values() if entry.cut_s is None]
        if any(entry.sounded for entry in live):
            return Agent.AUDIBLE
        return Agent.THINKING if any(entry.in_conversation for entry in live) else Agent.SILENT

    @property
    def answering(self) -> str | None:
        """Return the id of the reply in the conversation that is not made yet, or None."""
        for entry in self._entries.values():
            if entry.in_conversation and not entry.made and entry.cut_s is None:
                return entry.reply.id
        return None

    @property
    def audible_id(self) -> str | None:
        """Return the id of the reply that is heard now, or None."""
        for entry in self._entries.values():
            if entry.sounded and entry.cut_s is None:
                return entry.reply.id
        return None

    def latency(self, reply_id: str) -> Latency:
        """Return the stages' times of a reply that is under way."""
        return self._entries[reply_id].reply.stopwatch.latency()

    # --- beginning ---

    def answer(
        self,
        settings: Settings,
        stopwatch: Stopwatch,
        *,
        in_conversation: bool = True,
        items: tuple[Item, ...] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Let the language model answer the conversation, or `items` instead of it.

        Raises:
            BadRequestError: there is a reply in the conversation already that is not made yet.
        """
        if in_conversation and self.answering is not None:
            raise BadRequestError(
                f"the conversation has an active response already: {self.answering}; cancel it, or wait for its end",
                reason="conversation_already_has_active_response",
            )
        request = LlmRequest(
            items=tuple(self._conversation) if items is None else items,
            call_id=self._call_id,
            instructions=settings.instructions,
            tools=tuple(_tool(tool) for tool in settings.tools),
            tool_choice=settings.tool_choice,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        stopwatch.asked_s = asyncio.get_running_loop().time()
        self._begin(self._llm.reply(request), settings, stopwatch, in_conversation=in_conversation, metadata=metadata)

    def say(self, text: str, settings: Settings, stopwatch: Stopwatch) -> None:
        """Say a fixed text, as a reply like any other."""
        stopwatch.asked_s = asyncio.get_running_loop().time()
        self._begin(_fixed(text), settings, stopwatch, in_conversation=True, metadata=None)

    def _begin(
        self,
        source: AsyncGenerator[LlmDelta, None],
        settings: Settings,
        stopwatch: Stopwatch,
        *,
        in_conversation: bool,
        metadata: dict[str, Any] | None,
    ) -> None:
        modality: Modality = "audio" if "audio" in settings.modalities else "text"
        reply = Reply(
            source=source,
            modality=modality,
            mouth=self._mouth(settings) if modality == "audio" else None,
            apology=self._config.call.apology,
            post=self._post,
            stopwatch=stopwatch,
        )
        self._publish(ReplyStarted(reply.id, settings.modalities, metadata))
        task = self._start(reply.run(), f"reply {reply.id}")
        # Not in `run`: a reply that is cut in the loop turn in which it began never runs.
        task.add_done_callback(lambda _: self._over(reply))
        self._entries[reply.id] = _Entry(
            reply=reply,
            task=task,
            settings=settings,
            in_conversation=in_conversation,
            metadata=metadata,
        )

    def _over(self, reply: Reply) -> None:
        reply.over.set()
        self._post(ReplyEnded(reply.id))

    def _mouth(self, settings: Settings) -> Mouth:
        before = [entry.reply.over for entry in self._entries.values() if entry.cut_s is None and entry.reply.mouth]
        free = before[-1] if before else _set_event()
        return Mouth(
            tts=self._tts,
            voice=Voice(settings.voice, settings.speed, settings.language or self._config.asr.language),
            playout=self._playout,
            free=free,
            first_audio_timeout_s=self._config.tts.first_audio_timeout_s,
            text_limit_bytes=self._config.playout.text_limit_bytes,
        )

    # --- on its way ---

    def grew(self, reply_id: str) -> None:
        """Show the text that has come."""
        entry = self._live(reply_id)
        if entry is None or entry.made:
            return
        delta = entry.reply.take_growth()
        if not delta:
            return
        self._show_item(entry)
        reply = entry.reply
        self._conversation.change(self._item(entry, status="in_progress"))
        self._publish(ReplyTextGrew(reply.id, reply.item_id, 0, delta, reply.modality))
        if reply.modality == "text" and reply.shown_chars == len(delta):
            self._publish(TurnMeasured(reply.id, reply.stopwatch.latency()))

    def sounded(self, reply_id: str) -> bool:
        """Tell that the first packet went out; return whether that still counts."""
        entry = self._live(reply_id)
        if entry is None:
            return False
        entry.sounded = True
        self._sounded_s[entry.reply.item_id] = asyncio.get_running_loop().time()
        self._publish(PlayoutStarted(reply_id))
        self._publish(TurnMeasured(reply_id, entry.reply.stopwatch.latency()))
        return True

    def heard_to(self, reply_id: str, n_chars: int) -> None:
        """Tell how much of the text has been heard."""
        entry = self._live(reply_id)
        if entry is not None:
            self._publish(WordsSpoken(reply_id, entry.reply.item_id, n_chars))

    def made(self, reply_id: str) -> None:
        """Tell that all of a reply is written."""
        entry = self._live(reply_id)
        if entry is None:
            return
        self.grew(reply_id)
        entry.made = True
        reply = entry.reply
        self._keep_floor(entry)
        items: list[Item] = []
        if entry.item_shown:
            item = self._item(entry, status="completed" if reply.status == "completed" else "incomplete")
            self._finish_item(entry, item, 0)
            items.append(item)
        for index, call in enumerate(reply.calls, start=len(items)):
            self._add_call(entry, call, index)
            items.append(call)
        self._finish(entry, tuple(items))

    def ended(self, reply_id: str) -> None:
        """Tell that a reply has been heard to its end, and forget it."""
        entry = self._entries.pop(reply_id, None)
        if entry is not None and entry.cut_s is None and entry.sounded:
            self._publish(PlayoutStopped(reply_id))

    # --- the cut ---

    def cut(self, reason: str) -> str | None:
        """Silence the agent: the ear and the memory now, then the work. Return the id of the reply that was heard.

        Args:
            reason: `turn_detected` or `client_cancelled`.
        """
        heard_id = self.audible_id
        heard = self._playout.cut()
        for entry in self._entries.values():
            if entry.cut_s is None and (entry.in_conversation or (heard and heard.reply_id == entry.reply.id)):
                self._cut(entry, heard, reason)
        return heard_id

    def cancel(self, reply_id: str) -> bool:
        """Cancel one reply at the client's wish, and no other; return whether it was there."""
        entry = self._live(reply_id)
        if entry is None:
            return False
        floor = self._playout.floor
        heard = self._playout.cut() if floor is not None and floor.reply_id == reply_id else None
        self._cut(entry, heard, "client_cancelled")
        return True

    def stuck(self, now_s: float) -> list[str]:
        """Return the replies that were cancelled long ago and have not ended; each is named once."""
        stuck: list[str] = []
        for entry in self._entries.values():
            if entry.cut_s is not None and now_s - entry.cut_s > STUCK_AFTER_S:
                entry.cut_s = float("inf")
                stuck.append(entry.reply.id)
        return stuck

    def _cut(self, entry: _Entry, heard: Heard | None, reason: str) -> None:
        """Remember of a reply only what was `heard`, tell it, and end the work."""
        if heard is not None and heard.reply_id != entry.reply.id:
            heard = None
        self._forget_unheard(entry, heard, reason)
        self._keep_floor(entry)
        entry.cut_s = asyncio.get_running_loop().time()
        entry.task.cancel()
        entry.reply.over.set()

    def _forget_unheard(self, entry: _Entry, heard: Heard | None, reason: str) -> None:
        reply = entry.reply
        spoken = reply.modality == "audio"
        if not entry.made:
            reply.take_growth()
        item = self._item(entry, status="incomplete")
        known = self._conversation.find(item.id)
        if entry.made and isinstance(known, SpokenMessage):
            item = known  # it may have been truncated already
        if spoken:
            item = cut_message(item, reply.written[: heard.n_chars if heard else 0].rstrip())
        self._conversation.change(item)
        if entry.sounded:
            self._publish(PlayoutCleared(reply.id))
        if spoken and entry.item_shown:
            self._publish(ItemTruncated(reply.item_id, heard.heard_ms if heard else 0, item.text))
        if not entry.made:
            reply.status, reply.reason = "cancelled", reason
            if entry.item_shown:
                self._finish_item(entry, item, 0)
            self._finish(entry, (item,) if entry.item_shown else ())

    def truncate(self, item_id: str, audio_end_ms: int) -> bool:
        """Cut the memory of an earlier spoken reply to what is spoken within `audio_end_ms`.

        Returns:
            Whether the item is one that was spoken in this call.

        Raises:
            BadRequestError: it is still being written.
        """
        item = self._conversation.find(item_id)
        if isinstance(item, SpokenMessage) and item.status == "in_progress":
            raise BadRequestError(f"item {item_id!r} is still being written; cancel its response", param="item_id")
        floor = self._floors.get(item_id)
        if floor is None or not isinstance(item, SpokenMessage):
            return False
        item = cut_message(item, (item.written or "")[: floor.chars_at(audio_end_ms)].rstrip())
        self._conversation.change(item)
        self._publish(ItemTruncated(item_id, audio_end_ms, item.text))
        return True

    def forget_after(self, heard_s: float) -> bool:
        """Cut the memory of all that was spoken after the loop time `heard_s`: the caller was gone by then.

        Returns:
            Whether nothing of the last reply was heard.
        """
        nothing_heard = False
        for item_id, begun_s in self._sounded_s.items():
            floor, item = self._floors.get(item_id), self._conversation.find(item_id)
            if floor is None or not isinstance(item, SpokenMessage):
                continue
            heard_ms = max(0, int((heard_s - begun_s) * 1000))
            nothing_heard = False
            if heard_ms + SIGN_OF_LIFE_MS < floor.written_samples * 1000 // self._playout.rate_hz:
                self.truncate(item_id, heard_ms)
                item = self._conversation.find(item_id)
                nothing_heard = isinstance(item, SpokenMessage) and not item.text
        return nothing_heard

    # --- telling ---

    def _keep_floor(self, entry: _Entry) -> None:
        if entry.reply.floor is not None:
            self._floors[entry.reply.item_id] = entry.reply.floor
            while len(self._floors) > FLOORS_KEPT:
                oldest = next(iter(self._floors))
                del self._floors[oldest]
                self._sounded_s.pop(oldest, None)

    def _live(self, reply_id: str) -> _Entry | None:
        entry = self._entries.get(reply_id)
        return entry if entry is not None and entry.cut_s is None else None

    def _item(self, entry: _Entry, *, status: ItemStatus) -> SpokenMessage:
        reply = entry.reply
        return SpokenMessage(
            id=reply.item_id,
            role="assistant",
            modality=reply.modality,
            written=reply.written,
            status=status,
        )

    def _show_item(self, entry: _Entry) -> None:
        if entry.item_shown:
            return
        entry.item_shown = True
        item = replace(self._item(entry, status="in_progress"), written="")
        previous_id = self._conversation.add(item) if entry.in_conversation else None
        self._publish(ReplyItemAdded(entry.reply.id, item, 0, previous_id, entry.in_conversation))

    def _finish_item(self, entry: _Entry, item: SpokenMessage, index: int) -> None:
        self._conversation.change(item)
        previous_id = self._conversation.previous_id(item.id)
        self._publish(ReplyItemDone(entry.reply.id, item, index, previous_id, entry.in_conversation))

    def _add_call(self, entry: _Entry, call: FunctionCall, index: int) -> None:
        reply_id = entry.reply.id
        previous_id = self._conversation.add(call) if entry.in_conversation else None
        begun = replace(call, arguments="", status="in_progress")
        self._publish(ReplyItemAdded(reply_id, begun, index, previous_id, entry.in_conversation))
        self._publish(ReplyArgumentsGrew(reply_id, call.id, index, call.call_id, call.arguments))
        self._publish(ReplyItemDone(reply_id, call, index, previous_id, entry.in_conversation))

    def _finish(self, entry: _Entry, items: tuple[Item, ...]) -> None:
        reply = entry.reply
        if reply.status == "failed":
            logger.warning("%s: reply %s failed: %s", self._call_id, reply.id, reply.failure)
        self._publish(
            ReplyDone(
                reply_id=reply.id,
                status=reply.status,
                modalities=entry.settings.modalities,
                items=items,
                reason=reply.reason,
                message=reply.apology if reply.status == "failed" else None,
                usage=reply.usage,
                metadata=entry.metadata,
            )
        )


def _tool(tool: dict[str, Any]) -> Tool:
    return Tool(str(tool.get("name", "")), str(tool.get("description", "")), dict(tool.get("parameters") or {}))


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _fixed(text: str) -> AsyncGenerator[LlmDelta, None]:
    yield TextDelta(text)
    yield Finished("stop")


def _too_late(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    work.close()
    raise RuntimeError(f"{name}: the call is over")
