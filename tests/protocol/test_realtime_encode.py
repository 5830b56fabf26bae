"""What clients are told, word for word."""

import json
from typing import Any, get_args

import pytest

from media_server.conversation import FunctionCall, Latency, SpokenMessage, Usage
from media_server.events import (
    BargeInMeasured,
    DigitPressed,
    ErrorHappened,
    Event,
    ItemAdded,
    ItemTruncated,
    LevelsMeasured,
    PlayoutCleared,
    ReplyDone,
    ReplyItemAdded,
    ReplyItemDone,
    ReplyTextGrew,
    SoundCommitted,
    SpeechStarted,
    TranscriptCompleted,
    TranscriptGuessed,
    TurnMeasured,
    WordsSpoken,
)
from media_server.protocol.realtime import RealtimeWire
from tests.protocol.samples import BEGUN, CALL, CALL_BEGUN, CUT, EVENTS, SAID, SPOKEN, WRITTEN


def told(event: Event) -> list[dict[str, Any]]:
    """Return the messages without their ids, which differ each time."""
    messages = [json.loads(text) for text in RealtimeWire().encode(event)]
    return [{name: value for name, value in message.items() if name != "event_id"} for message in messages]


def types(event: Event) -> list[str]:
    return [message["type"] for message in told(event)]


SPOKEN_OBJECT = {
    "id": "item_4",
    "object": "realtime.item",
    "status": "completed",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_audio", "transcript": "Coming right up."}],
}
CUT_OBJECT = {
    **SPOKEN_OBJECT,
    "status": "incomplete",
    "content": [{"type": "output_audio", "transcript": "Coming"}],
}

PLAIN: list[tuple[Event, list[dict[str, Any]]]] = [
    (
        SpeechStarted("item_1", 1200),
        [{"type": "input_audio_buffer.speech_started", "item_id": "item_1", "audio_start_ms": 1200}],
    ),
    (
        SoundCommitted("item_1", None),
        [{"type": "input_audio_buffer.committed", "previous_item_id": None, "item_id": "item_1"}],
    ),
    (
        ItemTruncated("item_4", 640, "Coming"),
        [
            {"type": "conversation.item.truncated", "item_id": "item_4", "content_index": 0, "audio_end_ms": 640},
            {"type": "parley.heard", "item_id": "item_4", "text": "Coming"},
        ],
    ),
    (
        TranscriptGuessed("item_1", "a flat", "white"),
        [{"type": "parley.partial", "item_id": "item_1", "stable": "a flat", "tail": "white"}],
    ),
    (
        TranscriptCompleted("item_1", "a flat white", 1.2004),
        [
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": "item_1",
                "content_index": 0,
                "transcript": "a flat white",
                "usage": {"type": "duration", "seconds": 1.2},
            }
        ],
    ),
    (
        ReplyTextGrew("resp_1", "item_4", 0, "Coming ", "audio"),
        [
            {
                "type": "response.output_audio_transcript.delta",
                "response_id": "resp_1",
                "item_id": "item_4",
                "output_index": 0,
                "content_index": 0,
                "delta": "Coming ",
            }
        ],
    ),
    (PlayoutCleared("resp_1"), [{"type": "output_audio_buffer.cleared", "response_id": "resp_1"}]),
    (
        WordsSpoken("resp_1", "item_4", 6),
        [{"type": "parley.spoken", "response_id": "resp_1", "item_id": "item_4", "chars": 6}],
    ),
    (
        TurnMeasured("resp_1", Latency(endpointing_ms=512.34, voice_to_voice_ms=801.07)),
        [
            {
                "type": "parley.latency",
                "response_id": "resp_1",
                "endpointing_ms": 512.3,
                "asr_final_ms": None,
                "llm_first_token_ms": None,
                "tts_first_audio_ms": None,
                "first_packet_ms": None,
                "voice_to_voice_ms": 801.1,
            }
        ],
    ),
    (
        BargeInMeasured("resp_1", None, 123.46, 140.0, None),
        [
            {
                "type": "parley.barge_in",
                "response_id": "resp_1",
                "duck_ms": None,
                "cut_ms": 123.5,
                "silence_ms": 140.0,
                "ear_ms": None,
            }
        ],
    ),
    (
        LevelsMeasured(-20.04, -96.0, True, False),
        [
            {
                "type": "parley.levels",
                "caller_dbfs": -20.0,
                "agent_dbfs": -96.0,
                "caller_speaking": True,
                "agent_speaking": False,
            }
        ],
    ),
    (DigitPressed("#", 120), [{"type": "parley.dtmf", "digit": "#", "duration_ms": 120}]),
    (
        ErrorHappened("invalid_request_error", "invalid_value", "no", "session.voice", "mine_1"),
        [
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "code": "invalid_value",
                    "message": "no",
                    "param": "session.voice",
                    "event_id": "mine_1",
                },
            }
        ],
    ),
]


@pytest.mark.parametrize(("event", "messages"), PLAIN, ids=lambda each: type(each).__name__)
def test_an_event_is_told_word_for_word(event: Event, messages: list[dict[str, Any]]) -> None:
    assert told(event) == messages


def test_every_event_of_the_house_has_a_word() -> None:
    sampled = {type(event) for event in EVENTS}

    assert sampled == set(get_args(Event))
    assert all(RealtimeWire().encode(event) for event in EVENTS)


def test_every_message_has_an_event_id_of_its_own() -> None:
    ids = [json.loads(text)["event_id"] for event in EVENTS * 2 for text in RealtimeWire().encode(event)]

    assert len(ids) == len(set(ids))
    assert all(each.startswith("event_") for each in ids)


def test_sound_not_yet_recognised_has_a_null_transcript() -> None:
    added, done = told(ItemAdded(SAID, "item_0", True))

    assert [added["type"], done["type"]] == ["conversation.item.added", "conversation.item.done"]
    assert added["previous_item_id"] == "item_0"
    assert added["item"] == {
        "id": "item_1",
        "object": "realtime.item",
        "status": "completed",
        "type": "message",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


def test_an_item_that_is_not_done_is_only_added() -> None:
    assert types(ItemAdded(SAID, None, False)) == ["conversation.item.added"]


def test_a_spoken_reply_begins_with_three_messages_and_no_content() -> None:
    item, in_conversation, part = told(ReplyItemAdded("resp_1", BEGUN, 0, "item_1"))

    assert item == {
        "type": "response.output_item.added",
        "response_id": "resp_1",
        "output_index": 0,
        "item": {**SPOKEN_OBJECT, "status": "in_progress", "content": []},
    }
    assert in_conversation["type"] == "conversation.item.added"
    assert in_conversation["previous_item_id"] == "item_1"
    assert part == {
        "type": "response.content_part.added",
        "response_id": "resp_1",
        "item_id": "item_4",
        "output_index": 0,
        "content_index": 0,
        "part": {"type": "audio", "transcript": ""},
    }


def test_a_tool_call_begins_in_progress_whatever_its_status() -> None:
    completed = FunctionCall(id="item_6", call_id="call_1", name="brew", arguments="")

    item, _ = told(ReplyItemAdded("resp_1", completed, 0, None))

    assert item["item"]["status"] == "in_progress"


def test_a_tool_call_has_no_content_part() -> None:
    assert types(ReplyItemAdded("resp_1", CALL_BEGUN, 1, None)) == [
        "response.output_item.added",
        "conversation.item.added",
    ]


def test_a_spoken_item_ends_with_five_messages() -> None:
    messages = told(ReplyItemDone("resp_1", SPOKEN, 0, "item_1"))
    place = {"response_id": "resp_1", "item_id": "item_4", "output_index": 0, "content_index": 0}

    assert messages == [
        {"type": "response.output_audio.done", **place},
        {"type": "response.output_audio_transcript.done", **place, "transcript": "Coming right up."},
        {
            "type": "response.content_part.done",
            **place,
            "part": {"type": "audio", "transcript": "Coming right up."},
        },
        {
            "type": "response.output_item.done",
            "response_id": "resp_1",
            "output_index": 0,
            "item": SPOKEN_OBJECT,
        },
        {"type": "conversation.item.done", "previous_item_id": "item_1", "item": SPOKEN_OBJECT},
    ]


def test_a_cut_item_holds_what_was_heard() -> None:
    _, transcript, part, item, done = told(ReplyItemDone("resp_1", CUT, 0, "item_1"))

    assert transcript["transcript"] == "Coming"
    assert part["part"] == {"type": "audio", "transcript": "Coming"}
    assert item["item"] == CUT_OBJECT
    assert done["item"] == CUT_OBJECT


def test_a_written_item_ends_with_text_messages() -> None:
    messages = told(ReplyItemDone("resp_1", WRITTEN, 0, "item_1"))

    assert [message["type"] for message in messages] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
    ]
    assert messages[0]["text"] == "Done."
    assert messages[1]["part"] == {"type": "text", "text": "Done."}
    assert messages[2]["item"]["content"] == [{"type": "output_text", "text": "Done."}]


def test_a_tool_call_ends_with_its_arguments() -> None:
    arguments, item, done = told(ReplyItemDone("resp_1", CALL, 1, "item_4"))

    assert arguments == {
        "type": "response.function_call_arguments.done",
        "response_id": "resp_1",
        "item_id": "item_6",
        "output_index": 1,
        "call_id": "call_1",
        "name": "brew",
        "arguments": '{"size":"large"}',
    }
    assert item["item"] == {
        "id": "item_6",
        "object": "realtime.item",
        "status": "completed",
        "type": "function_call",
        "call_id": "call_1",
        "name": "brew",
        "arguments": '{"size":"large"}',
    }
    assert done["type"] == "conversation.item.done"


def test_a_reply_out_of_band_is_not_told_as_part_of_the_conversation() -> None:
    begun = types(ReplyItemAdded("resp_1", WRITTEN, 0, None, in_conversation=False))
    ended = types(ReplyItemDone("resp_1", WRITTEN, 0, None, in_conversation=False))

    assert not [kind for kind in begun + ended if kind.startswith("conversation.")]


def test_a_completed_reply_tells_its_output_and_usage() -> None:
    (done,) = told(
        ReplyDone(
            reply_id="resp_1",
            status="completed",
            modalities=("audio",),
            items=(SPOKEN,),
            usage=Usage(input_tokens=30, output_tokens=12),
            metadata={"topic": "coffee"},
        )
    )

    assert done == {
        "type": "response.done",
        "response": {
            "object": "realtime.response",
            "id": "resp_1",
            "status": "completed",
            "status_details": None,
            "output": [SPOKEN_OBJECT],
            "output_modalities": ["audio"],
            "metadata": {"topic": "coffee"},
            "usage": {
                "total_tokens": 42,
                "input_tokens": 30,
                "output_tokens": 12,
                "input_token_details": {"text_tokens": 30, "audio_tokens": 0, "cached_tokens": 0},
                "output_token_details": {"text_tokens": 12, "audio_tokens": 0},
            },
        },
    }


@pytest.mark.parametrize(
    ("status", "reason", "message", "details"),
    [
        ("cancelled", "turn_detected", None, {"type": "cancelled", "reason": "turn_detected"}),
        ("incomplete", "max_output_tokens", None, {"type": "incomplete", "reason": "max_output_tokens"}),
        (
            "failed",
            "engine_down",
            "Sorry.",
            {"type": "failed", "error": {"type": "server_error", "code": "engine_down", "message": "Sorry."}},
        ),
    ],
)
def test_a_reply_that_is_not_completed_says_why(
    status: Any, reason: str, message: str | None, details: dict[str, Any]
) -> None:
    (done,) = told(
        ReplyDone(reply_id="resp_1", status=status, modalities=("audio",), items=(), reason=reason, message=message)
    )

    assert done["response"]["status"] == status
    assert done["response"]["status_details"] == details
    assert "usage" not in done["response"]


def test_half_a_character_from_a_language_model_can_still_be_sent() -> None:
    (text,) = RealtimeWire().encode(ReplyTextGrew("resp_1", "item_4", 0, "\ud83d", "audio"))

    assert "\\ud83d" in text
    assert text.isascii()


def test_text_of_any_script_is_sent_as_it_is() -> None:
    (text,) = RealtimeWire().encode(ReplyTextGrew("resp_1", "item_4", 0, "Grüß dich 😀", "audio"))

    assert "Grüß dich 😀" in text


def test_a_level_that_is_no_number_becomes_null() -> None:
    (levels,) = told(LevelsMeasured(float("nan"), float("-inf"), False, False))

    assert levels["caller_dbfs"] is None
    assert levels["agent_dbfs"] is None


def test_a_reply_with_nothing_heard_holds_an_empty_transcript() -> None:
    unheard = SpokenMessage(
        id="item_4", role="assistant", modality="audio", written="Coming.", heard="", status="incomplete"
    )

    item = told(ReplyItemDone("resp_1", unheard, 0, None))[3]["item"]

    assert item["content"] == [{"type": "output_audio", "transcript": ""}]
