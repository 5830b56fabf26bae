"""Items of a conversation as the OpenAI Realtime API writes them, both ways.

A null in an item's status or content is silently ignored by stock clients, so none is ever sent there; only a caller's
sound that is not yet recognised carries `"transcript": null`, because there it is asked for.
"""

from typing import Any, cast

from media_server.conversation import FunctionCall, FunctionOutput, Item, ItemStatus, Role, SpokenMessage, new_id
from media_server.protocol.realtime_fields import (
    join,
    read_choice,
    read_list,
    read_name,
    read_object,
    read_text,
    required,
    unsupported,
    wrong_value,
)

_COMMON = ("id", "object", "type", "status")
_NAMES = {
    "message": (*_COMMON, "role", "content"),
    "function_call": (*_COMMON, "call_id", "name", "arguments"),
    "function_call_output": (*_COMMON, "call_id", "output"),
}
_PARTS = {
    "user": ("input_text", "input_audio"),
    "assistant": ("output_text", "output_audio"),
    "system": ("input_text",),
}


def item_object(item: Item) -> dict[str, Any]:
    """Return an item as a client sees it: a reply that was cut holds what was heard."""
    common = {"id": item.id, "object": "realtime.item", "status": item.status}
    match item:
        case SpokenMessage():
            return {**common, "type": "message", "role": item.role, "content": _content(item)}
        case FunctionCall():
            about = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            return {**common, "type": "function_call", **about}
        case FunctionOutput():
            return {**common, "type": "function_call_output", "call_id": item.call_id, "output": item.output}


def part_object(item: SpokenMessage) -> dict[str, Any]:
    """Return the one content part of a reply's message, as the `content_part` events have it."""
    if item.modality == "audio":
        return {"type": "audio", "transcript": item.text}
    return {"type": "text", "text": item.text}


def read_item(value: Any, place: str) -> Item:
    """Return an item that a client made, with the id it gave or a fresh one.

    Raises:
        BadRequestError: it is malformed, or holds what we cannot take.
    """
    kind = _read_kind(value, place)
    fields = read_object(value, place, _NAMES[kind])
    item_id = _read_id(fields, "id", place, "item")
    status = _read_status(fields.get("status"), join(place, "status"))
    if kind == "message":
        return _read_message(fields, place, item_id, status)
    if kind == "function_call":
        return FunctionCall(
            id=item_id,
            call_id=_read_id(fields, "call_id", place, "call"),
            name=read_name(required(fields, "name", place), join(place, "name")),
            arguments=read_text(required(fields, "arguments", place), join(place, "arguments")),
            status=status,
        )
    return FunctionOutput(
        id=item_id,
        call_id=read_name(required(fields, "call_id", place), join(place, "call_id")),
        output=read_text(required(fields, "output", place), join(place, "output")),
        status=status,
    )


def _content(item: SpokenMessage) -> list[dict[str, Any]]:
    if item.role == "assistant":
        if item.status == "in_progress" and not item.text:
            return []
        if item.modality == "audio":
            return [{"type": "output_audio", "transcript": item.text}]
        return [{"type": "output_text", "text": item.text}]
    if item.role == "user" and item.modality == "audio":
        return [{"type": "input_audio", "transcript": item.written}]
    return [{"type": "input_text", "text": item.text}]


def _read_kind(value: Any, place: str) -> str:
    if not isinstance(value, dict):
        read_object(value, place, ())
    kind = read_text(required(value, "type", place), join(place, "type"))
    if kind == "item_reference":
        raise unsupported(place, "references are not resolved here; give the items themselves")
    if kind.startswith("mcp_"):
        raise unsupported(place, "MCP is not spoken here; give functions as tools")
    return read_choice(kind, join(place, "type"), _NAMES)


def _read_id(fields: dict[str, Any], name: str, place: str, prefix: str) -> str:
    given = fields.get(name)
    return new_id(prefix) if given is None else read_name(given, join(place, name))


def _read_status(value: Any, place: str) -> ItemStatus:
    """Return what the client says; what it made cannot be in progress here, for nobody would ever end it."""
    if value is None:
        return "completed"
    given = read_choice(value, place, ("completed", "incomplete", "in_progress"))
    return "incomplete" if given == "incomplete" else "completed"


def _read_message(fields: dict[str, Any], place: str, item_id: str, status: ItemStatus) -> SpokenMessage:
    role = cast(Role, read_choice(required(fields, "role", place), join(place, "role"), _PARTS))
    where = join(place, "content")
    parts = read_list(required(fields, "content", place), where)
    if not parts:
        raise wrong_value(parts, where, "a list of at least one part")
    read = [_read_part(part, f"{where}[{index}]", role) for index, part in enumerate(parts)]
    spoken = all(kind.endswith("audio") for kind, _ in read)
    return SpokenMessage(
        id=item_id,
        role=role,
        modality="audio" if spoken else "text",
        written="\n".join(text for _, text in read),
        status=status,
    )


def _read_part(value: Any, place: str, role: Role) -> tuple[str, str]:
    """Return a part's kind and its words."""
    part = read_object(value, place, ("type", "text", "transcript", "audio", "image_url", "detail", "format"))
    kind = read_text(required(part, "type", place), join(place, "type"))
    if kind == "input_image":
        raise unsupported(place, "this server hears and speaks but does not see")
    read_choice(kind, join(place, "type"), _PARTS[role])
    if kind.endswith("text"):
        return kind, read_text(required(part, "text", place), join(place, "text"))
    if part.get("transcript") is None:
        raise unsupported(place, "sound comes over the media track; in an item only its `transcript` is read")
    return kind, read_text(part["transcript"], join(place, "transcript"))
