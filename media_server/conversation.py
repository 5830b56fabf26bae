"""Words: what was said, by whom, and how much of it was heard.

A conversation is an ordered list of items. Item ids are made here; the wire and the store only show them. Items are
frozen: a change is a new item in the place of the old one.

    text as `written`   what the agent's language model wrote, or what the caller said or typed
    text as `heard`     how much of a spoken reply reached the caller's ear; None: nothing was cut
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["user", "assistant", "system"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
Modality: TypeAlias = Literal["audio", "text"]


def new_id(prefix: str) -> str:
    """Return a fresh id such as `item_9f86d081884c7d65`, unique enough for all conversations ever."""
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class Word:
    """One word and its place in time, in milliseconds from the start of the utterance or reply."""

    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What a recogniser makes of an utterance so far.

    Attributes:
        stable: text that further partials only add to. A final has all its text here, and may contradict the partials.
        tail: text after it that may still change; empty in a final.
        final: whether this is the last word on the utterance.
        words: word times of the whole text, where the engine has them.
        language: BCP 47, or None where the engine does not say.
        end_pts: position of the last sample heard, at 16 kHz from the start of the utterance.
    """

    stable: str
    tail: str = ""
    final: bool = False
    words: tuple[Word, ...] = ()
    language: str | None = None
    end_pts: int = 0

    @property
    def text(self) -> str:
        """Return the whole text, stable or not."""
        return f"{self.stable} {self.tail}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenMessage:
    """Something said or typed, by either side.

    Attributes:
        modality: `audio` if it was (or is to be) spoken, `text` if it was typed.
        written: the whole text. None: the words are still being recognised.
        heard: the part that the caller heard, where a reply was cut; None: nothing was cut.
    """

    id: str
    role: Role
    modality: Modality
    written: str | None
    heard: str | None = None
    status: ItemStatus = "completed"

    @property
    def text(self) -> str:
        """Return what both sides may remember: the heard part if the message was cut."""
        return (self.written or "") if self.heard is None else self.heard


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCall:
    """The agent asks the client to run a tool. `arguments` is JSON."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionOutput:
    """What a tool gave back. `output` is any text, JSON by custom."""

    id: str
    call_id: str
    output: str
    status: ItemStatus = "completed"


Item: TypeAlias = SpokenMessage | FunctionCall | FunctionOutput


def n_chars(item: Item) -> int:
    """Return how much text an item holds."""
    match item:
        case SpokenMessage():
            return len(item.text)
        case FunctionCall():
            return len(item.arguments)
        case FunctionOutput():
            return len(item.output)


def cut_message(item: SpokenMessage, heard: str) -> SpokenMessage:
    """Return a reply of which no more than `heard` reached the caller's ear; an earlier, shorter cut stays."""
    if len(heard) >= len(item.text):
        return item
    return replace(item, heard=heard, status="incomplete")


class Conversation:
    """An ordered list of items."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items in order."""
        return iter(self._items.values())

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __contains__(self, item_id: str) -> bool:
        """Return whether there is an item of that id."""
        return item_id in self._items

    @property
    def n_chars(self) -> int:
        """Return how much text all items hold."""
        return sum(n_chars(item) for item in self._items.values())

    def find(self, item_id: str) -> Item | None:
        """Return the item of that id, or None."""
        return self._items.get(item_id)

    def add(self, item: Item, *, after: str | None = None, first: bool = False) -> str | None:
        """Add an item at the end (or after `after`, or as the first) and return the id of the one before it.

        Raises:
            ValueError: the id is taken, or `after` does not exist.
        """
        if item.id in self._items:
            raise ValueError(f"item {item.id!r} exists already")
        if after is not None and after not in self._items:
            raise ValueError(f"there is no item {after!r} to stand after")
        last = next(reversed(self._items), None)
        if first or (after is not None and after != last):
            at = 0 if first else list(self._items).index(after or "") + 1
            items = list(self._items.items())
            self._items = dict([*items[:at], (item.id, item), *items[at:]])
            return None if first else after
        self._items[item.id] = item
        return last

    def change(self, item: Item) -> None:
        """Put `item` in the place of the one with its id; does nothing if that was deleted meanwhile."""
        if item.id in self._items:
            self._items[item.id] = item

    def delete(self, item_id: str) -> bool:
        """Take an item out and return whether it was there."""
        return self._items.pop(item_id, None) is not None

    def previous_id(self, item_id: str) -> str | None:
        """Return the id of the item before this one; None for the first."""
        before: str | None = None
        for key in self._items:
            if key == item_id:
                return before
            before = key
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens spent on a reply."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The stages of one turn, in milliseconds; None for a stage that this turn did not have.

    Attributes:
        endpointing_ms: from the caller's last sample of speech to the decision that the turn is over.
        asr_final_ms: from that decision to the final transcript.
        llm_first_token_ms: from the final transcript to the language model's first token.
        tts_first_audio_ms: from the first sentence handed to the voice to its first sound.
        first_packet_ms: from SpeechStopped (the decision) to the first packet of the reply going out.
        voice_to_voice_ms: from the caller's last sample of speech to the first packet of the reply.
    """

    endpointing_ms: float | None = None
    asr_final_ms: float | None = None
    llm_first_token_ms: float | None = None
    tts_first_audio_ms: float | None = None
    first_packet_ms: float | None = None
    voice_to_voice_ms: float | None = None
