"""What came of a call, in figures."""

import json
from typing import Any

from media_server.caller.client import SetupTimes
from media_server.caller.report import CallReport, ReplyReport, TurnReport, percentiles, report_turn

TURN: list[dict[str, Any]] = [
    {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1", "transcript": "a latte"},
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}},
    {"type": "response.output_audio_transcript.delta", "response_id": "resp_1", "item_id": "item_2", "delta": "Sure, "},
    {
        "type": "response.output_audio_transcript.delta",
        "response_id": "resp_1",
        "item_id": "item_2",
        "delta": "a latte",
    },
    {"type": "parley.latency", "response_id": "resp_1", "endpointing_ms": 512.0, "voice_to_voice_ms": 600.0},
    {
        "type": "parley.barge_in",
        "response_id": "resp_1",
        "duck_ms": 40,
        "cut_ms": 130,
        "silence_ms": 145,
        "ear_ms": 150,
    },
    {"type": "parley.heard", "item_id": "item_2", "text": "Sure,"},
    {"type": "response.done", "response": {"id": "resp_1", "status": "cancelled", "output": [{"id": "item_2"}]}},
]


def test_a_turn_is_told_from_its_events() -> None:
    turn = report_turn("order.wav", TURN, answered=False, heard_ms=610.0)

    assert turn == TurnReport(
        said="order.wav",
        transcripts=["a latte"],
        replies=[
            ReplyReport(
                id="resp_1",
                status="cancelled",
                text="Sure, a latte",
                heard="Sure,",
                latency={"endpointing_ms": 512.0, "voice_to_voice_ms": 600.0},
            )
        ],
        answered=False,
        heard_ms=610.0,
        barge_ins=[{"duck_ms": 40, "cut_ms": 130, "silence_ms": 145, "ear_ms": 150}],
    )


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([30, 10, 20]) == {"p50": 20, "p95": 30, "p99": 30}
    assert percentiles(list(range(1, 101))) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([7]) == {"p50": 7, "p95": 7, "p99": 7}


def test_the_table_has_a_row_for_each_stage_that_was_measured() -> None:
    report = CallReport(
        "http://127.0.0.1:8080",
        setup=SetupTimes(answer_ms=12.0, connected_ms=40.0, channel_ms=45.0),
        turns=[report_turn("order.wav", TURN, answered=True, heard_ms=610.0)],
    )

    assert report.table() == [
        "set-up: answer 12, connected 40, channel 45 ms after the offer",
        "ms               turns     p50     p95     p99",
        "end of turn          1     512     512     512",
        "voice to voice       1     600     600     600",
        "heard here           1     610     610     610",
    ]


def test_a_call_without_a_turn_has_no_table() -> None:
    assert CallReport("http://127.0.0.1:8080").table() == []


def test_the_report_is_json() -> None:
    report = CallReport("http://h", turns=[report_turn("order.wav", TURN, answered=True, heard_ms=None)])

    again = json.loads(json.dumps(report.as_json()))

    assert again["turns"][0]["replies"][0]["heard"] == "Sure,"
    assert again["latency"] == {
        "endpointing_ms": {"p50": 512.0, "p95": 512.0, "p99": 512.0},
        "voice_to_voice_ms": {"p50": 600.0, "p95": 600.0, "p99": 600.0},
    }
