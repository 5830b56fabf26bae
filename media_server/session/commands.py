"""What a client may ask of a call, and what is done about it."""

from typing import Protocol

from media_server.conversation import Conversation, n_chars
from media_server.dialogue.turn_taking import TurnTaking
from media_server.errors import BadRequestError, NotFoundError, TooLargeError
from media_server.events import (
    AddItem,
    CancelReply,
    ChangeSettings,
    ClearPlayout,
    ClearSound,
    Command,
    CommitSound,
    CreateReply,
    DeleteItem,
    Event,
    ItemAdded,
    ItemDeleted,
    ItemRetrieved,
    RetrieveItem,
    Settings,
    SettingsChanged,
    SoundCleared,
    TruncateItem,
    merge_settings,
)
from media_server.session.listen import Ear
from media_server.session.replies import Replies
from media_server.session.reply import Stopwatch
from media_server.session.utterance import Utterance

MAX_ITEMS = 1000
MAX_CHARS = 1_000_000
"""What a client may put into a conversation: all of it is sent to the language model with every turn."""


class Call(Protocol):
    """What commands see of a call."""

    id: str
    settings: Settings
    conversation: Conversation
    replies: Replies
    ear: Ear
    turns: TurnTaking

    @property
    def announced_id(self) -> str | None:
        """Return the id that was told of an item that is not there yet."""

    def change(self, settings: Settings) -> None:
        """Put new settings in force."""

    def commit(self, utterance: Utterance) -> None:
        """Make an ended utterance an item."""

    def publish(self, event: Event) -> None:
        """Tell every channel."""


def obey(call: Call, command: Command) -> None:  # noqa: C901  (one flat table)
    """Do what a client asks.

    Raises:
        ClientError: it cannot be done; nothing was changed.
    """
    match command:
        case ChangeSettings(changes=changes):
            call.change(merge_settings(call.settings, changes))
            call.publish(SettingsChanged(call.id, call.settings))
        case AddItem():
            _add_item(call, command)
        case RetrieveItem(item_id=item_id):
            item = call.conversation.find(item_id)
            if item is None:
                raise _no_item(item_id)
            call.publish(ItemRetrieved(item))
        case DeleteItem(item_id=item_id):
            if not call.conversation.delete(item_id):
                raise _no_item(item_id)
            call.publish(ItemDeleted(item_id))
        case TruncateItem(item_id=item_id, audio_end_ms=audio_end_ms):
            if not call.replies.truncate(item_id, audio_end_ms):
                raise _no_item(item_id)
        case CreateReply():
            call.replies.answer(
                merge_settings(call.settings, command.changes),
                Stopwatch(),
                in_conversation=command.in_conversation,
                items=command.items,
                metadata=command.metadata,
            )
        case CancelReply(reply_id=reply_id):
            _cancel(call, reply_id)
        case ClearPlayout():
            call.replies.cut("client_cancelled")
        case CommitSound():
            _commit(call)
        case ClearSound():
            call.ear.clear()
            call.publish(SoundCleared())


def _add_item(call: Call, command: AddItem) -> None:
    if len(call.conversation) >= MAX_ITEMS or call.conversation.n_chars + n_chars(command.item) > MAX_CHARS:
        raise TooLargeError(
            f"the conversation is full, it takes {MAX_ITEMS} items or {MAX_CHARS} characters; delete some first",
            param="item",
            reason="conversation_full",
        )
    if command.item.id == call.announced_id:
        raise BadRequestError(f"item {command.item.id!r} exists already", param="item.id")
    try:
        previous_id = call.conversation.add(command.item, after=command.after, first=command.first)
    except ValueError as error:
        raise BadRequestError(str(error), param="previous_item_id" if command.after else "item.id") from None
    call.publish(ItemAdded(command.item, previous_id, done=True))


def _cancel(call: Call, reply_id: str | None) -> None:
    wanted = reply_id or call.replies.answering
    if wanted is None:
        raise BadRequestError("there is no active response to cancel", reason="response_cancel_not_active")
    if not call.replies.cancel(wanted):
        raise NotFoundError(f"there is no response {wanted!r}", param="response_id")


def _commit(call: Call) -> None:
    utterance = call.ear.commit()
    if utterance is not None:
        call.commit(utterance)
    elif not call.turns.caller_talking:
        raise BadRequestError("there is less than 100 ms of sound to commit", reason="input_audio_buffer_commit_empty")


def _no_item(item_id: str) -> NotFoundError:
    return NotFoundError(f"there is no item {item_id[:80]!r}", param="item_id", reason="item_not_found")
