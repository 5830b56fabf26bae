"""What clients ask, as commands of the house."""

import json
from typing import Any

import pytest

from media_server.conversation import FunctionCall, FunctionOutput, SpokenMessage
from media_server.errors import ClientError, TooLargeError
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
from media_server.protocol.realtime import RealtimeWire

HELLO = {"type": "message", "id": "mine", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
HELLO_ITEM = SpokenMessage(id="mine", role="user", modality="text", written="hello")


def asked(message: Any) -> Command:
    return RealtimeWire().decode(json.dumps(message))


def refused(text: str) -> ClientError:
    with pytest.raises(ClientError) as caught:
        RealtimeWire().decode(text)
    return caught.value


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (
            {"type": "session.update", "event_id": "e1", "session": {"type": "realtime", "tracing": "auto"}},
            ChangeSettings(changes={"extra": {"tracing": "auto"}}, event_id="e1"),
        ),
        ({"type": "conversation.item.create", "item": HELLO}, AddItem(item=HELLO_ITEM)),
        (
            {"type": "conversation.item.create", "previous_item_id": "root", "item": HELLO},
            AddItem(item=HELLO_ITEM, first=True),
        ),
        (
            {"type": "conversation.item.create", "previous_item_id": "item_0", "item": HELLO, "event_id": "e2"},
            AddItem(item=HELLO_ITEM, after="item_0", event_id="e2"),
        ),
        (
            {"type": "conversation.item.create", "previous_item_id": None, "event_id": None, "item": HELLO},
            AddItem(item=HELLO_ITEM),
        ),
        ({"type": "conversation.item.retrieve", "item_id": "item_1"}, RetrieveItem(item_id="item_1")),
        ({"type": "conversation.item.delete", "item_id": "item_1"}, DeleteItem(item_id="item_1")),
        (
            {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 640},
            TruncateItem(item_id="item_1", audio_end_ms=640),
        ),
        ({"type": "response.create"}, CreateReply()),
        ({"type": "response.create", "response": None, "event_id": "e3"}, CreateReply(event_id="e3")),
        (
            {
                "type": "response.create",
                "response": {
                    "conversation": "none",
                    "output_modalities": ["text"],
                    "instructions": "Sum up.",
                    "max_output_tokens": 50,
                    "tool_choice": "none",
                    "metadata": {"topic": "summary"},
                    "input": [HELLO],
                    "audio": {"output": {"voice": "amy"}},
                },
            },
            CreateReply(
                changes={
                    "modalities": ("text",),
                    "instructions": "Sum up.",
                    "max_tokens": 50,
                    "tool_choice": "none",
                    "voice": "amy",
                },
                in_conversation=False,
                items=(HELLO_ITEM,),
                metadata={"topic": "summary"},
            ),
        ),
        ({"type": "response.create", "response": {"input": [], "conversation": "auto"}}, CreateReply(items=())),
        (
            {
                "type": "response.create",
                "response": {"instructions": None, "input": None, "audio": {"output": {"voice": None}}},
            },
            CreateReply(),
        ),
        ({"type": "response.cancel"}, CancelReply()),
        ({"type": "response.cancel", "response_id": "resp_1"}, CancelReply(reply_id="resp_1")),
        ({"type": "output_audio_buffer.clear"}, ClearPlayout()),
        ({"type": "input_audio_buffer.commit"}, CommitSound()),
        ({"type": "input_audio_buffer.clear", "event_id": "e4"}, ClearSound(event_id="e4")),
    ],
)
def test_a_message_becomes_a_command(message: dict[str, Any], command: Command) -> None:
    assert asked(message) == command


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"type": "message", "id": "i", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
            SpokenMessage(id="i", role="system", modality="text", written="Be brief."),
        ),
        (
            {
                "type": "message",
                "id": "i",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": "a latte"}],
            },
            SpokenMessage(id="i", role="user", modality="audio", written="a latte"),
        ),
        (
            {
                "type": "message",
                "id": "i",
                "role": "assistant",
                "status": "incomplete",
                "content": [{"type": "output_audio", "transcript": "Com", "audio": None}],
            },
            SpokenMessage(id="i", role="assistant", modality="audio", written="Com", status="incomplete"),
        ),
        (
            {
                "type": "message",
                "id": "i",
                "object": "realtime.item",
                "status": None,
                "role": "assistant",
                "content": [{"type": "output_text", "text": "One."}, {"type": "output_text", "text": "Two."}],
            },
            SpokenMessage(id="i", role="assistant", modality="text", written="One.\nTwo."),
        ),
        (
            {"type": "function_call", "id": "i", "call_id": "c", "name": "brew", "arguments": "{}"},
            FunctionCall(id="i", call_id="c", name="brew", arguments="{}"),
        ),
        (
            {"type": "function_call_output", "id": "i", "call_id": "c", "output": "", "status": "in_progress"},
            FunctionOutput(id="i", call_id="c", output=""),
        ),
    ],
)
def test_an_item_of_a_client_is_read(item: dict[str, Any], expected: Any) -> None:
    assert asked({"type": "conversation.item.create", "item": item}) == AddItem(item=expected)


def test_an_item_without_an_id_gets_one() -> None:
    item = {"type": "function_call", "id": None, "name": "brew", "arguments": "{}"}

    command = asked({"type": "conversation.item.create", "item": item})

    assert isinstance(command, AddItem)
    assert isinstance(command.item, FunctionCall)
    assert command.item.id.startswith("item_")
    assert command.item.call_id.startswith("call_")


def create(**item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


def user(part: Any) -> dict[str, Any]:
    return create(type="message", role="user", content=[part])


@pytest.mark.parametrize(
    ("message", "reason", "param", "words"),
    [
        ([], "invalid_type", None, "a message must be a JSON object, got []"),
        ({}, "missing_required_parameter", "type", "type is missing"),
        ({"type": 3}, "invalid_type", "type", "type must be a string"),
        ({"type": "session.updat"}, "unknown_type", "type", "did you mean 'session.update'?"),
        ({"type": "xyzzy"}, "unknown_type", "type", 'there is no message of type "xyzzy"'),
        ({"type": "response.cancel", "event_id": 3}, "invalid_type", "event_id", "event_id must be a string"),
        ({"type": "response.cancel", "respons_id": "r"}, "unknown_parameter", "respons_id", "'response_id'"),
        ({"type": "session.update"}, "missing_required_parameter", "session", "session is missing"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "unsupported", "input_audio_buffer.append", "track"),
        ({"type": "conversation.item.delete", "item_id": None}, "missing_required_parameter", "item_id", "missing"),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 1, "audio_end_ms": 0},
            "invalid_value",
            "content_index",
            "from 0 to 0, got 1",
        ),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": -1},
            "invalid_value",
            "audio_end_ms",
            "got -1",
        ),
        (create(), "missing_required_parameter", "item.type", "missing"),
        (create(type="mesage"), "invalid_value", "item.type", "'message'"),
        (create(type="mcp_approval_response"), "unsupported", "item", "MCP"),
        (create(type="message", role="user"), "missing_required_parameter", "item.content", "missing"),
        (create(type="message", role="user", content=[]), "invalid_value", "item.content", "at least one part"),
        (create(type="message", role="agent", content=[]), "invalid_value", "item.role", "'assistant'"),
        (
            create(type="function_call_output", call_id="c", output={"a": 1}),
            "invalid_type",
            "item.output",
            "a string",
        ),
        (
            create(type="function_call_output", call_id="c", output="", id="x" * 65),
            "invalid_value",
            "item.id",
            "1 to 64",
        ),
        (user({"type": "output_text", "text": ""}), "invalid_value", "item.content[0].type", "'input_text'"),
        (user({"type": "input_image", "image_url": "data:"}), "unsupported", "item.content[0]", "does not see"),
        (user({"type": "input_audio", "audio": "AAAA"}), "unsupported", "item.content[0]", "transcript"),
        (user({"type": "input_text", "text": 3}), "invalid_type", "item.content[0].text", "a string, got 3"),
        (
            {"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "i"}]}},
            "unsupported",
            "response.input[0]",
            "give the items themselves",
        ),
        (
            {"type": "response.create", "response": {"conversation": "mine"}},
            "invalid_value",
            "response.conversation",
            "'auto' or 'none'",
        ),
        (
            {"type": "response.create", "response": {"audio": {"input": {}}}},
            "unknown_parameter",
            "response.audio.input",
            "has no field",
        ),
        (
            {"type": "response.create", "response": {"metadata": {"a": 1}}},
            "invalid_type",
            "response.metadata.a",
            "a string",
        ),
        (
            {"type": "response.create", "response": {"metadata": {str(i): "" for i in range(17)}}},
            "invalid_value",
            "response.metadata",
            "at most 16",
        ),
    ],
)
def test_a_refusal_says_what_where_and_wanted(message: Any, reason: str, param: str | None, words: str) -> None:
    error = refused(json.dumps(message))

    assert error.reason == reason
    assert error.param == param
    assert words in error.message


def test_a_refusal_carries_the_clients_event_id() -> None:
    assert refused('{"type": "session.update", "event_id": "mine", "session": 3}').event_id == "mine"
    assert refused('{"type": "xyzzy", "event_id": "mine"}').event_id == "mine"


@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", "{'type': 1}", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "9" * 5000, "[" * 65_000],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    assert refused(text).reason == "invalid_json"


def test_nesting_has_a_limit() -> None:
    deep = '{"type":"session.update","session":{"prompt":' + '{"a":' * 70 + "1" + "}" * 70 + "}}"

    assert refused(deep).reason == "invalid_json"


@pytest.mark.parametrize("value", ['"\\ud83d"', '"\\u0000"'])
def test_what_others_would_choke_on_is_refused(value: str) -> None:
    assert refused('{"type":"session.update","session":{"prompt":{"a":[' + value + "]}}}").reason == "invalid_value"


def test_a_whole_emoji_is_welcome() -> None:
    assert asked({"type": "session.update", "session": {"instructions": "\U0001f600"}}) == ChangeSettings(
        changes={"instructions": "\U0001f600"}
    )


def test_a_message_has_a_largest_size() -> None:
    frame = '{"type":"session.update","session":{"instructions":""}}'
    fits = "x" * (65_536 - len(frame))

    assert isinstance(RealtimeWire().decode(frame.replace('""', f'"{fits}"')), ChangeSettings)
    with pytest.raises(TooLargeError, match="65536 bytes, got 65537"):
        RealtimeWire().decode(frame.replace('""', f'"{fits}x"'))


def test_a_list_has_a_greatest_length() -> None:
    tools = [{"type": "function", "name": f"tool_{n}"} for n in range(129)]

    error = refused(json.dumps({"type": "session.update", "session": {"tools": tools}}))

    assert (error.param, error.reason) == ("session.tools", "array_above_max_length")


def test_a_value_in_a_refusal_is_cut_short() -> None:
    error = refused(json.dumps({"type": "session.update", "session": "x" * 10_000}))

    assert len(error.message) < 200
