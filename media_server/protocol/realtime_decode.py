"""Messages of the OpenAI Realtime API as commands of the house.

`_COMMANDS` at the end says which message is read by which function and what it may hold.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from media_server.errors import BadRequestError, ClientError
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
    RetrieveItem,
    TruncateItem,
)
from media_server.protocol.realtime_fields import (
    join,
    nearest,
    read_choice,
    read_int,
    read_json,
    read_list,
    read_name,
    read_object,
    read_text,
    required,
    shown,
    unsupported,
    wrong_type,
    wrong_value,
)
from media_server.protocol.realtime_items import read_item
from media_server.protocol.realtime_session import REPLY_NAMES, parse_session, read_changes

MAX_CALL_MS = 86_400_000
"""No reply is longer than a day."""

MAX_METADATA = 16
"""Pairs of metadata, as the API has it; names of up to 64 and values of up to 512 characters."""


def read_command(text: str) -> Command:
    """Return what a message asks.

    Raises:
        ClientError: with the client's `event_id` where it could be read.
    """
    message = read_json(text)
    if not isinstance(message, dict):
        raise wrong_type(message, "", "a JSON object")
    event_id = message.get("event_id")
    if event_id is not None:
        event_id = read_name(event_id, "event_id", 512)
    try:
        return _read_command(message, event_id)
    except ClientError as error:
        error.event_id = event_id
        raise


def _read_command(message: dict[str, Any], event_id: str | None) -> Command:
    kind = read_text(required(message, "type", ""), "type")
    if kind not in _COMMANDS:
        near = nearest(kind, _COMMANDS)
        raise BadRequestError(
            f"there is no message of type {shown(kind)}" + (f"; did you mean {near!r}?" if near else ""),
            param="type",
            reason="unknown_type",
        )
    names, read = _COMMANDS[kind]
    return read(read_object(message, "", ("type", "event_id", *names)), event_id)


def _change_settings(message: dict[str, Any], event_id: str | None) -> Command:
    return ChangeSettings(changes=parse_session(required(message, "session", "")), event_id=event_id)


def _add_item(message: dict[str, Any], event_id: str | None) -> Command:
    item = read_item(required(message, "item", ""), "item")
    after = message.get("previous_item_id")
    if after is not None:
        after = read_name(after, "previous_item_id")
    if after == "root":
        return AddItem(item=item, first=True, event_id=event_id)
    return AddItem(item=item, after=after, event_id=event_id)


def _retrieve_item(message: dict[str, Any], event_id: str | None) -> Command:
    return RetrieveItem(item_id=_read_item_id(message), event_id=event_id)


def _delete_item(message: dict[str, Any], event_id: str | None) -> Command:
    return DeleteItem(item_id=_read_item_id(message), event_id=event_id)


def _truncate_item(message: dict[str, Any], event_id: str | None) -> Command:
    read_int(message.get("content_index", 0), "content_index", 0, 0)
    audio_end_ms = read_int(required(message, "audio_end_ms", ""), "audio_end_ms", 0, MAX_CALL_MS)
    return TruncateItem(item_id=_read_item_id(message), audio_end_ms=audio_end_ms, event_id=event_id)


def _create_reply(message: dict[str, Any], event_id: str | None) -> Command:
    if message.get("response") is None:
        return CreateReply(event_id=event_id)
    place = "response"
    reply = read_object(message["response"], place, (*REPLY_NAMES, "conversation", "input", "metadata"))
    if reply.get("audio") is not None:
        read_object(reply["audio"], "response.audio", ("output",))
    conversation = reply.get("conversation")
    if conversation is not None:
        read_choice(conversation, "response.conversation", ("auto", "none"))
    items = reply.get("input")
    if items is not None:
        read = enumerate(read_list(items, "response.input"))
        items = tuple(read_item(item, f"response.input[{index}]") for index, item in read)
    return CreateReply(
        changes=read_changes(_without_nulls({name: reply[name] for name in REPLY_NAMES if name in reply}), place),
        in_conversation=conversation != "none",
        items=items,
        metadata=_read_metadata(reply.get("metadata"), "response.metadata"),
        event_id=event_id,
    )


def _cancel_reply(message: dict[str, Any], event_id: str | None) -> Command:
    reply_id = message.get("response_id")
    return CancelReply(
        reply_id=None if reply_id is None else read_name(reply_id, "response_id"),
        event_id=event_id,
    )


def _clear_playout(_: dict[str, Any], event_id: str | None) -> Command:
    return ClearPlayout(event_id=event_id)


def _commit_sound(_: dict[str, Any], event_id: str | None) -> Command:
    return CommitSound(event_id=event_id)


def _clear_sound(_: dict[str, Any], event_id: str | None) -> Command:
    return ClearSound(event_id=event_id)


def _append_sound(_: dict[str, Any], event_id: str | None) -> Command:
    raise unsupported("input_audio_buffer.append", "the sound of a WebRTC call comes over its media track")


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a reply's own settings without those that are null: these leave the session's as they are."""
    given = {name: value for name, value in fields.items() if value is not None}
    output = (given.get("audio") or {}).get("output")
    if isinstance(output, dict):
        given["audio"] = {"output": {name: value for name, value in output.items() if value is not None}}
    return given


def _read_item_id(message: dict[str, Any]) -> str:
    return read_name(required(message, "item_id", ""), "item_id")


def _read_metadata(value: Any, place: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(value, place, "an object")
    if len(value) > MAX_METADATA:
        raise wrong_value(value, place, f"an object of at most {MAX_METADATA} pairs")
    for name, text in value.items():
        read_name(name, place)
        if len(read_text(text, join(place, name))) > 512:
            raise wrong_value(text, join(place, name), "a string of at most 512 characters")
    return value


_Reader: TypeAlias = Callable[[dict[str, Any], str | None], Command]

_COMMANDS: dict[str, tuple[tuple[str, ...], _Reader]] = {
    "session.update": (("session",), _change_settings),
    "conversation.item.create": (("previous_item_id", "item"), _add_item),
    "conversation.item.retrieve": (("item_id",), _retrieve_item),
    "conversation.item.delete": (("item_id",), _delete_item),
    "conversation.item.truncate": (("item_id", "content_index", "audio_end_ms"), _truncate_item),
    "response.create": (("response",), _create_reply),
    "response.cancel": (("response_id",), _cancel_reply),
    "output_audio_buffer.clear": ((), _clear_playout),
    "input_audio_buffer.commit": ((), _commit_sound),
    "input_audio_buffer.clear": ((), _clear_sound),
    "input_audio_buffer.append": (("audio",), _append_sound),
}
