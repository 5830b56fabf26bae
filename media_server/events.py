"""Happenings: what a call tells its channels (events, past tense) and what channels ask of it (commands, imperative).

A `Channel` yields commands and is sent events; a `Wire` turns both into text. One event may be several messages on a
wire. Order is that of the OpenAI Realtime API:

    a turn of the caller   SpeechStarted, SpeechStopped, SoundCommitted, ItemAdded, TranscriptGrew*, TranscriptCompleted
    a reply                ReplyStarted, ReplyItemAdded, ReplyTextGrew*, ReplyItemDone, ReplyDone; beside them
                           PlayoutStarted once the first of it is heard and PlayoutStopped once all of it was
    a barge-in             SpeechStarted, PlayoutCleared, ItemTruncated, ReplyItemDone (cut), ReplyDone (cancelled)
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

from media_server.conversation import FunctionCall, Item, Latency, Modality, SpokenMessage, Usage
from media_server.errors import ClientError

# --- settings of a call --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDetection:
    """How the server finds out that the caller has finished.

    Attributes:
        kind: what the client calls it; both `server_vad` and `semantic_vad` end a turn by silence.
        threshold: how sure the VAD must be, 0 to 1; None: the configured one.
        prefix_ms: sound kept from before the speech was noticed; None: the configured one.
        silence_ms: how long a silence ends a turn; None: the configured one.
        create_reply: whether a finished turn is answered without being asked to.
        interrupt: whether speech of the caller cuts a reply.
    """

    kind: Literal["server_vad", "semantic_vad"] = "semantic_vad"
    threshold: float | None = None
    prefix_ms: int | None = None
    silence_ms: int | None = None
    create_reply: bool = True
    interrupt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a client may set of its call.

    Attributes:
        turn_detection: None: the client itself commits the sound and asks for replies.
        transcribe: whether the caller's words are shown.
        tools: as the client gave them: `{"type": "function", "name", "description", "parameters"}`.
        tool_choice: `auto`, `none`, `required`, or the name of a function.
        max_tokens: the most that a reply may write; None: no limit of ours.
        extra: what the wire knows and we only give back (`tracing`, `include`, ...).
    """

    model: str = "parley"
    instructions: str = ""
    modalities: tuple[Modality, ...] = ("audio",)
    voice: str = "default"
    speed: float = 1.0
    language: str | None = None
    prompt: str | None = None
    transcribe: bool = True
    turn_detection: TurnDetection | None = field(default_factory=TurnDetection)
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    max_tokens: int | None = None
    temperature: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def merge_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return `settings` with `changes` laid over them; neither is touched.

    Args:
        settings: what is in force.
        changes: values by field name. `turn_detection` is None or a dict of its own changed fields; `extra` a dict in
            which None takes a name out.
    """
    merged = dict(changes)
    if merged.get("turn_detection") is not None:
        merged["turn_detection"] = replace(settings.turn_detection or TurnDetection(), **merged["turn_detection"])
    if "extra" in merged:
        extra = {**settings.extra, **merged["extra"]}
        merged["extra"] = {name: value for name, value in extra.items() if value is not None}
    return replace(settings, **merged)


# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The first event on every channel."""

    call_id: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The answer to `ChangeSettings`."""

    call_id: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller speaks, since `audio_start_ms` on the stream's clock. `item_id` will hold what they say."""

    item_id: str
    audio_start_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The caller has finished: the turn is over."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class SoundCommitted:
    """The caller's sound became an item."""

    item_id: str
    previous_id: str | None


@dataclass(frozen=True, slots=True)
class SoundCleared:
    """The sound not yet committed was dropped."""


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item stands in the conversation; `done` if it is complete at once (typed, or made by the client)."""

    item: Item
    previous_id: str | None
    done: bool


@dataclass(frozen=True, slots=True)
class ItemRetrieved:
    """The answer to `RetrieveItem`."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    """An item was taken out."""

    item_id: str


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """The caller heard only the first `audio_end_ms` of a spoken item, that is `heard`."""

    item_id: str
    audio_end_ms: int
    heard: str


@dataclass(frozen=True, slots=True)
class TranscriptGrew:
    """A few more stable words of the caller. All deltas of an item, put together, are its stable text."""

    item_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class TranscriptGuessed:
    """The whole transcript so far: what is stable, and the tail that may still change."""

    item_id: str
    stable: str
    tail: str


@dataclass(frozen=True, slots=True)
class TranscriptCompleted:
    """The final transcript of an item. `seconds`: how much sound it was made from."""

    item_id: str
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    """The recogniser failed on this item."""

    item_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """The agent begins to answer."""

    reply_id: str
    modalities: tuple[Modality, ...]
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReplyItemAdded:
    """A reply's item begins. `in_conversation` is False for a reply out of band."""

    reply_id: str
    item: SpokenMessage | FunctionCall
    output_index: int
    previous_id: str | None
    in_conversation: bool = True


@dataclass(frozen=True, slots=True)
class ReplyTextGrew:
    """A little more of what the agent writes."""

    reply_id: str
    item_id: str
    output_index: int
    delta: str
    modality: Modality


@dataclass(frozen=True, slots=True)
class ReplyArgumentsGrew:
    """A little more of the arguments of a tool call."""

    reply_id: str
    item_id: str
    output_index: int
    call_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ReplyItemDone:
    """A reply's item is written (completed) or was cut (incomplete)."""

    reply_id: str
    item: SpokenMessage | FunctionCall
    output_index: int
    previous_id: str | None
    in_conversation: bool = True


ReplyStatus: TypeAlias = Literal["completed", "cancelled", "incomplete", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyDone:
    """The end of a reply.

    Attributes:
        reason: for cancelled `turn_detected` or `client_cancelled`; for incomplete `max_output_tokens` or
            `content_filter`; for failed the error's code; None for completed.
        message: for failed, one friendly line.
    """

    reply_id: str
    status: ReplyStatus
    modalities: tuple[Modality, ...]
    items: tuple[Item, ...]
    reason: str | None = None
    message: str | None = None
    usage: Usage | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PlayoutStarted:
    """The first sound of a reply goes out."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class PlayoutStopped:
    """The last sound of a reply went out."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class PlayoutCleared:
    """The playout was emptied before its end."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class PlayoutDucked:
    """The reply became quieter because the caller may be speaking (`ducked`), or came back to full volume."""

    reply_id: str
    ducked: bool


@dataclass(frozen=True, slots=True)
class WordsSpoken:
    """How much of a reply's text was spoken so far: its first `n_chars` characters."""

    reply_id: str
    item_id: str
    n_chars: int


@dataclass(frozen=True, slots=True)
class TurnMeasured:
    """How long each stage of a turn took."""

    reply_id: str
    latency: Latency


@dataclass(frozen=True, slots=True)
class BargeInMeasured:
    """A barge-in, in milliseconds from the arrival of the packet with the caller's first speech.

    Attributes:
        duck_ms: to the duck; None if the reply was cut without one.
        cut_ms: to the cut.
        silence_ms: to the first silent packet going out.
        ear_ms: to silence at the caller's ear, as far as we know the way there (half the round-trip time and the
            caller's buffer, where the transport measures them); None where it does not.
    """

    reply_id: str
    duck_ms: float | None
    cut_ms: float
    silence_ms: float
    ear_ms: float | None


@dataclass(frozen=True, slots=True)
class LevelsMeasured:
    """How loud both sides are, RMS in dBFS, and whether the caller speaks and the agent is heard."""

    caller_dbfs: float
    agent_dbfs: float
    caller_speaking: bool
    agent_speaking: bool


@dataclass(frozen=True, slots=True)
class DigitPressed:
    """The caller pressed a key: one of `0123456789*#ABCD`. Told when it is let go."""

    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class ErrorHappened:
    """Something went wrong that this channel should know.

    Attributes:
        kind: `invalid_request_error` or `server_error`.
        event_id: the client's id of the command that failed.
    """

    kind: str
    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


Event: TypeAlias = (
    CallStarted
    | SettingsChanged
    | SpeechStarted
    | SpeechStopped
    | SoundCommitted
    | SoundCleared
    | ItemAdded
    | ItemRetrieved
    | ItemDeleted
    | ItemTruncated
    | TranscriptGrew
    | TranscriptGuessed
    | TranscriptCompleted
    | TranscriptFailed
    | ReplyStarted
    | ReplyItemAdded
    | ReplyTextGrew
    | ReplyArgumentsGrew
    | ReplyItemDone
    | ReplyDone
    | PlayoutStarted
    | PlayoutStopped
    | PlayoutCleared
    | PlayoutDucked
    | WordsSpoken
    | TurnMeasured
    | BargeInMeasured
    | LevelsMeasured
    | DigitPressed
    | ErrorHappened
)


# --- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeSettings:
    """Lay `changes` (as `merge_settings` takes them, values already checked) over the settings of the call."""

    changes: dict[str, Any]
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddItem:
    """Add an item that the client made. `after`: the id before it; `first`: at the very beginning."""

    item: Item
    after: str | None = None
    first: bool = False
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveItem:
    """Show an item as the server remembers it."""

    item_id: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteItem:
    """Take an item out of the conversation."""

    item_id: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateItem:
    """The client says how much of a spoken item it played."""

    item_id: str
    audio_end_ms: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateReply:
    """Answer now.

    Attributes:
        changes: as `merge_settings` takes them; they hold for this reply only.
        in_conversation: False: out of band; what is written is not remembered.
        items: what to answer instead of the conversation; None: the conversation.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    in_conversation: bool = True
    items: tuple[Item, ...] | None = None
    metadata: dict[str, Any] | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReply:
    """End a reply (None: the one under way)."""

    reply_id: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearPlayout:
    """Fall silent now, and cancel the reply that is heard."""

    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSound:
    """The caller has finished, says the client."""

    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearSound:
    """Drop what was heard since the last commit."""

    event_id: str | None = None


Command: TypeAlias = (
    ChangeSettings
    | AddItem
    | RetrieveItem
    | DeleteItem
    | TruncateItem
    | CreateReply
    | CancelReply
    | ClearPlayout
    | CommitSound
    | ClearSound
)


# --- the ways in and out -------------------------------------------------------------------------------------------


class Wire(Protocol):
    """A language that a client speaks. Given to a Channel by `signaling/`; one wire serves one channel."""

    def encode(self, event: Event) -> tuple[str, ...]:
        """Return the messages that tell of `event`, in order; none if the language has no word for it."""

    def decode(self, text: str) -> Command:
        """Return what the client asks.

        Raises:
            ClientError: with the client's `event_id` where it could be read.
        """


class Channel(Protocol):
    """Where commands come from and events go to. A command that cannot be read is answered by the channel itself."""

    def commands(self) -> AsyncGenerator[Command, None]:
        """Yield commands until the far end is gone."""

    def send(self, event: Event) -> None:
        """Send an event. Never waits; what a slow client cannot take is merged."""

    async def close(self) -> None:
        """End the channel. Safe to call twice."""


def error_event(error: ClientError) -> ErrorHappened:
    """Return what the client that erred is told."""
    return ErrorHappened(
        kind="invalid_request_error",
        code=error.reason,
        message=error.message,
        param=error.param,
        event_id=error.event_id,
    )
