"""The wire against the types of the stock OpenAI package, and against anything at all."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import BaseModel
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from openai.types.realtime.realtime_session_create_response import RealtimeSessionCreateResponse

from media_server.errors import ClientError
from media_server.events import Command, Event, Wire
from media_server.protocol.realtime import RealtimeWire
from tests.protocol.samples import EVENTS


def models_by_type(union: Any) -> dict[str, type[BaseModel]]:
    """Return the models of one of the package's unions of events, by the word in their `type`."""
    models = get_args(get_args(union)[0])
    return {get_args(model.model_fields["type"].annotation)[0]: model for model in models}


SERVER_EVENTS = models_by_type(RealtimeServerEvent)
CLIENT_EVENTS = models_by_type(RealtimeClientEvent)

# A session that is told has two fields that a session asked for has not.
TOLD_ONLY = {"session.id", "session.object"}


def unknown_fields(model: BaseModel, place: str = "") -> Iterator[str]:
    """Yield the fields, however deep, that the package has no name for; its models take any."""
    yield from (f"{place}{name}" for name in model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, BaseModel):
                yield from unknown_fields(each, f"{place}{name}.")


def nulls(value: Any, place: str = "") -> Iterator[str]:
    """Yield the places where a message holds null."""
    if value is None:
        yield place
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from nulls(each, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for each in value:
            yield from nulls(each, f"{place}[]")


def encode(event: Event) -> list[dict[str, Any]]:
    return [json.loads(text) for text in RealtimeWire().encode(event)]


MESSAGES = [message for event in EVENTS for message in encode(event)]


def test_the_wire_is_a_wire() -> None:
    wire: Wire = RealtimeWire()

    assert wire.encode(EVENTS[0])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message["type"])
def test_a_message_is_what_the_stock_package_expects(message: dict[str, Any]) -> None:
    if message["type"].startswith("parley."):
        assert message["type"] not in SERVER_EVENTS
        return

    event = SERVER_EVENTS[message["type"]].model_validate(message, strict=True)

    assert set(unknown_fields(event)) <= TOLD_ONLY


def test_the_samples_hold_every_standard_message_that_webrtc_needs() -> None:
    not_sent = {kind for kind in SERVER_EVENTS if ".mcp_" not in kind and not kind.startswith("mcp_")} - {
        message["type"] for message in MESSAGES
    }

    assert not_sent == {
        "conversation.created",  # the beta form
        "conversation.item.created",  # the beta form
        "conversation.item.input_audio_transcription.segment",  # who of several speaks
        "input_audio_buffer.dtmf_event_received",  # telephones
        "input_audio_buffer.timeout_triggered",  # an agent that speaks up by itself
        "rate_limits.updated",
        "response.output_audio.delta",  # WebSockets
    }


@pytest.mark.parametrize(
    "message",
    [message for message in MESSAGES if message["type"] in {"session.created", "session.updated"}],
    ids=lambda message: message["type"],
)
def test_a_told_session_is_what_the_stock_package_expects(message: dict[str, Any]) -> None:
    session = RealtimeSessionCreateResponse.model_validate(message["session"], strict=True)

    assert set(unknown_fields(session)) <= {"parallel_tool_calls"}


def test_there_is_no_null_where_stock_clients_ignore_a_message_for_it() -> None:
    places = {place for message in MESSAGES if "session" not in message for place in nulls(message)}

    assert {place for place in places if not place.startswith(("error.", "parley."))} == {
        "previous_item_id",
        "item.content[].transcript",  # a caller's sound that is not yet recognised
        "response.status_details",
        "response.metadata",
        # parley.latency, parley.barge_in and parley.levels
        "asr_final_ms",
        "llm_first_token_ms",
        "tts_first_audio_ms",
        "first_packet_ms",
        "duck_ms",
        "ear_ms",
        "agent_dbfs",
    }


CLIENT_SAMPLES: list[tuple[dict[str, Any], str | None]] = [
    ({"type": "session.update", "session": {"type": "realtime", "instructions": "Be kind."}}, None),
    ({"type": "session.update", "session": {"type": "transcription"}}, "unsupported"),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        },
        None,
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
        },
        None,
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "mcp_approval_response", "id": "i", "approval_request_id": "r", "approve": True},
        },
        "unsupported",
    ),
    ({"type": "conversation.item.delete", "item_id": "item_1"}, None),
    ({"type": "conversation.item.retrieve", "item_id": "item_1"}, None),
    ({"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 10}, None),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "unsupported"),
    ({"type": "input_audio_buffer.clear"}, None),
    ({"type": "input_audio_buffer.commit"}, None),
    ({"type": "output_audio_buffer.clear"}, None),
    ({"type": "response.cancel"}, None),
    ({"type": "response.create", "response": {"conversation": "none", "metadata": {"a": "b"}}}, None),
]


def test_the_samples_hold_every_message_of_the_stock_package() -> None:
    assert {message["type"] for message, _ in CLIENT_SAMPLES} == set(CLIENT_EVENTS)


@pytest.mark.parametrize(("message", "reason"), CLIENT_SAMPLES)
def test_a_message_of_the_stock_package_is_taken_or_refused_with_a_reason(
    message: dict[str, Any], reason: str | None
) -> None:
    sent = CLIENT_EVENTS[message["type"]].model_validate({**message, "event_id": "mine"}, strict=True)
    text = sent.model_dump_json(exclude_unset=True)

    if reason is None:
        assert RealtimeWire().decode(text).event_id == "mine"
    else:
        with pytest.raises(ClientError) as refused:
            RealtimeWire().decode(text)
        assert refused.value.reason == reason
        assert refused.value.event_id == "mine"


WORDS = sorted(
    {
        *("type", "event_id", "session", "item", "response", "item_id", "content_index", "audio_end_ms", "realtime"),
        *("audio", "input", "output", "voice", "speed", "turn_detection", "transcription", "format", "tools", "prompt"),
        *("tool_choice", "max_output_tokens", "output_modalities", "metadata", "role", "user", "content", "message"),
        *("input_text", "input_audio", "text", "transcript", "function", "function_call", "name", "arguments", "id"),
        *("auto", "none", "inf", "semantic_vad", "threshold", "parameters", "description", "previous_item_id", "mcp"),
        *CLIENT_EVENTS,
    }
)
WORD = st.sampled_from(WORDS) | st.text(max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=5),
    max_leaves=20,
)
ANY_MESSAGE = st.fixed_dictionaries(
    {"type": st.sampled_from(sorted(CLIENT_EVENTS))},
    optional={
        "event_id": ANY_JSON,
        "session": st.dictionaries(WORD, ANY_JSON, max_size=4),
        "item": st.dictionaries(WORD, ANY_JSON, max_size=6),
        "response": st.dictionaries(WORD, ANY_JSON, max_size=4),
        "item_id": ANY_JSON,
        "audio_end_ms": ANY_JSON,
    },
)


@settings(deadline=None, max_examples=300)
@given(text=st.text() | ANY_JSON.map(json.dumps) | ANY_MESSAGE.map(json.dumps))
def test_whatever_comes_is_taken_or_refused(text: str) -> None:
    answer: Command | ClientError
    try:
        answer = RealtimeWire().decode(text)
    except ClientError as error:
        answer = error

    assert hasattr(answer, "event_id")


def one_field_wrong() -> list[str]:
    """Return every good message once for each of its fields and each wrong value in there."""
    return [
        json.dumps(bad)
        for message, reason in CLIENT_SAMPLES
        if reason is None
        for wrong in (None, True, -1, 1.5, "", "\u2603", [], [None], {}, {"a": None})
        for bad in with_one_wrong(message, wrong)
    ]


def with_one_wrong(value: Any, wrong: Any) -> Iterator[Any]:
    yield wrong
    if isinstance(value, dict):
        for name, each in value.items():
            yield from ({**value, name: bad} for bad in with_one_wrong(each, wrong))
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from ([*value[:index], bad, *value[index + 1 :]] for bad in with_one_wrong(each, wrong))


def test_one_wrong_field_never_breaks_the_wire() -> None:
    n_refused = 0
    for text in one_field_wrong():
        try:
            RealtimeWire().decode(text)
        except ClientError:
            n_refused += 1

    assert n_refused > 200
