"""The session object: what a client may set, how it is merged, how it is shown."""

from dataclasses import replace
from typing import Any

import pytest

from media_server.errors import BadRequestError
from media_server.events import Settings, TurnDetection, merge_settings
from media_server.protocol.realtime_session import parse_session, session_object
from tests.protocol.samples import FULL_SETTINGS, TOOL


def test_only_what_is_present_is_changed() -> None:
    changes = parse_session({"type": "realtime", "instructions": "Be brief."})

    assert changes == {"instructions": "Be brief."}
    assert merge_settings(FULL_SETTINGS, changes) == replace(FULL_SETTINGS, instructions="Be brief.")


def test_a_full_session_is_read() -> None:
    changes = parse_session(
        {
            "type": "realtime",
            "model": "house",
            "instructions": "Be kind.",
            "output_modalities": ["text"],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "name": "brew"},
            "max_output_tokens": 200,
            "temperature": 0.5,
            "audio": {
                "input": {
                    "transcription": {"model": "whisper-1", "language": "en", "prompt": "coffee"},
                    "turn_detection": {
                        "type": "server_vad",
                        "threshold": 0.4,
                        "prefix_padding_ms": 200,
                        "silence_duration_ms": 600,
                        "create_response": False,
                        "interrupt_response": True,
                    },
                },
                "output": {"voice": "amy", "speed": 1.25, "format": {"type": "audio/pcmu"}},
            },
        }
    )

    assert changes == {
        "model": "house",
        "instructions": "Be kind.",
        "modalities": ("text",),
        "tools": (TOOL,),
        "tool_choice": "brew",
        "max_tokens": 200,
        "temperature": 0.5,
        "language": "en",
        "prompt": "coffee",
        "transcribe": True,
        "turn_detection": {
            "kind": "server_vad",
            "threshold": 0.4,
            "prefix_ms": 200,
            "silence_ms": 600,
            "create_reply": False,
            "interrupt": True,
        },
        "voice": "amy",
        "speed": 1.25,
        "extra": {"audio.input.transcription.model": "whisper-1", "audio.output.format": {"type": "audio/pcmu"}},
    }


def test_the_first_update_of_the_stock_javascript_sdk_is_taken() -> None:
    # @openai/agents-realtime 0.20, openaiRealtimeBase.ts: _getMergedSessionConfig with its defaults.
    changes = parse_session(
        {
            "type": "realtime",
            "instructions": "Be kind.",
            "model": "gpt-realtime-2.1",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "noise_reduction": None,
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad"},
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1},
            },
        }
    )

    settings = merge_settings(Settings(), changes)

    assert settings.turn_detection == TurnDetection(kind="semantic_vad")
    assert settings.modalities == ("audio",)
    assert settings.extra == {
        "audio.input.format": {"type": "audio/pcm", "rate": 24000},
        "audio.output.format": {"type": "audio/pcm", "rate": 24000},
        "audio.input.transcription.model": "gpt-4o-mini-transcribe",
    }


def test_a_null_clears() -> None:
    changes = parse_session(
        {
            "instructions": None,
            "tools": None,
            "tool_choice": None,
            "max_output_tokens": None,
            "tracing": None,
            "audio": {
                "input": {"transcription": None, "turn_detection": None, "noise_reduction": None},
                "output": {"voice": None, "speed": None},
            },
        }
    )

    settings = merge_settings(FULL_SETTINGS, changes)

    assert settings == Settings(
        model="house",
        modalities=("text",),
        transcribe=False,
        turn_detection=None,
        extra={
            "include": ["item.input_audio_transcription.logprobs"],
            "audio.output.format": {"type": "audio/pcmu"},
            "parallel_tool_calls": True,
        },
    )


def test_a_null_side_of_audio_says_nothing() -> None:
    assert parse_session({"audio": None}) == {}
    assert parse_session({"audio": {"input": None, "output": None}}) == {}


def test_fields_of_turn_detection_are_merged() -> None:
    changes = parse_session({"audio": {"input": {"turn_detection": {"silence_duration_ms": 900}}}})

    assert merge_settings(FULL_SETTINGS, changes).turn_detection == TurnDetection(
        kind="server_vad", threshold=0.4, prefix_ms=200, silence_ms=900, create_reply=False
    )


def test_turn_detection_comes_back_after_it_was_off() -> None:
    off = Settings(turn_detection=None)
    changes = parse_session({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})

    assert merge_settings(off, changes).turn_detection == TurnDetection(kind="server_vad")


def test_merging_touches_neither_side() -> None:
    settings = Settings(extra={"tracing": "auto"})
    changes = parse_session({"tracing": None, "audio": {"input": {"turn_detection": {"threshold": 0.4}}}})

    merge_settings(settings, changes)

    assert settings.extra == {"tracing": "auto"}
    assert changes == {"extra": {"tracing": None}, "turn_detection": {"threshold": 0.4}}


def test_eagerness_is_given_back() -> None:
    changes = parse_session({"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}})

    shown = session_object("rtc_1", merge_settings(Settings(), changes))

    assert shown["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "create_response": True,
        "interrupt_response": True,
        "eagerness": "low",
    }


def test_eagerness_goes_with_turn_detection() -> None:
    settings = Settings(extra={"audio.input.turn_detection.eagerness": "low"})

    cleared = merge_settings(settings, parse_session({"audio": {"input": {"turn_detection": None}}}))

    assert cleared.extra == {}


def test_the_session_of_fresh_settings() -> None:
    assert session_object("rtc_1", Settings()) == {
        "type": "realtime",
        "object": "realtime.session",
        "id": "rtc_1",
        "model": "parley",
        "output_modalities": ["audio"],
        "instructions": "",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "prompt": None,
        "include": None,
        "truncation": "auto",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "noise_reduction": None,
                "transcription": {},
                "turn_detection": {
                    "type": "semantic_vad",
                    "create_response": True,
                    "interrupt_response": True,
                    "eagerness": "auto",
                },
            },
            "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "default", "speed": 1.0},
        },
    }


def test_what_is_shown_is_what_was_asked_for() -> None:
    shown = session_object("rtc_1", FULL_SETTINGS)
    asked = {name: value for name, value in shown.items() if name not in {"id", "object"}}

    assert merge_settings(Settings(), parse_session(asked)) == replace(
        FULL_SETTINGS,
        extra={**FULL_SETTINGS.extra, "audio.input.format": {"type": "audio/pcm", "rate": 24000}, "truncation": "auto"},
    )


def test_a_tool_gets_the_fields_that_it_lacks() -> None:
    changes = parse_session({"tools": [{"type": "function", "name": "brew", "parameters": None}]})

    assert changes["tools"] == (
        {
            "type": "function",
            "name": "brew",
            "description": "",
            "parameters": {"type": "object", "properties": {}},
        },
    )


def test_no_limit_of_tokens_is_inf() -> None:
    assert parse_session({"max_output_tokens": "inf"}) == {"max_tokens": None}


def test_a_voice_may_be_an_object() -> None:
    assert parse_session({"audio": {"output": {"voice": {"id": "amy"}}}}) == {"voice": "amy"}


def audio_input(**fields: Any) -> dict[str, Any]:
    return {"audio": {"input": fields}}


@pytest.mark.parametrize(
    ("session", "reason", "param", "words"),
    [
        (None, "invalid_type", "session", "session must be an object, got null"),
        ([], "invalid_type", "session", "session must be an object, got []"),
        ({"type": "transcription"}, "unsupported", "session.type", "only transcribe"),
        ({"type": 3}, "invalid_type", "session.type", "session.type must be a string, got 3"),
        ({"instruction": ""}, "unknown_parameter", "session.instruction", "did you mean 'instructions'?"),
        ({"voice": "amy"}, "unknown_parameter", "session.voice", "did you mean 'audio.output.voice'?"),
        ({"voise": "amy"}, "unknown_parameter", "session.voise", "did you mean 'audio.output.voice'?"),
        ({"xyzzy": 1}, "unknown_parameter", "session.xyzzy", 'session has no field "xyzzy"'),
        ({"instructions": 3}, "invalid_type", "session.instructions", "must be a string, got 3"),
        ({"output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities", "['text']"),
        ({"output_modalities": "audio"}, "invalid_type", "session.output_modalities", "must be a list"),
        ({"max_output_tokens": 0}, "invalid_value", "session.max_output_tokens", "from 1 to"),
        ({"max_output_tokens": "many"}, "invalid_type", "session.max_output_tokens", "'inf' or"),
        ({"max_output_tokens": 1.5}, "invalid_value", "session.max_output_tokens", "a whole number"),
        ({"max_output_tokens": True}, "invalid_type", "session.max_output_tokens", "got true"),
        ({"tools": [{"type": "mcp"}]}, "unsupported", "session.tools[0]", "MCP"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "session.tools[0].name", "is missing"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "invalid_value", "session.tools[0].name", "letters"),
        ({"tool_choice": "brew"}, "invalid_value", "session.tool_choice", "'auto' or 'none' or 'required'"),
        ({"tool_choice": {"type": "function"}}, "missing_required_parameter", "session.tool_choice.name", "missing"),
        ({"audio": {"output": {"speed": 2}}}, "invalid_value", "session.audio.output.speed", "0.25 to 1.5, got 2"),
        ({"audio": {"output": {"voice": ""}}}, "invalid_value", "session.audio.output.voice", "1 to 256"),
        ({"audio": {"ouput": {}}}, "unknown_parameter", "session.audio.ouput", "did you mean 'output'?"),
        (
            audio_input(turn_detection={"type": "clairvoyance"}),
            "invalid_value",
            "session.audio.input.turn_detection.type",
            "'server_vad' or 'semantic_vad', got \"clairvoyance\"",
        ),
        (
            audio_input(turn_detection={"treshold": 0.4}),
            "unknown_parameter",
            "session.audio.input.turn_detection.treshold",
            "did you mean 'threshold'?",
        ),
        (
            audio_input(turn_detection={"idle_timeout_ms": 6000}),
            "unsupported",
            "session.audio.input.turn_detection.idle_timeout_ms",
            "leave it out or null",
        ),
        (
            audio_input(format={"type": "audio/mp3"}),
            "invalid_value",
            "session.audio.input.format.type",
            "'audio/pcm'",
        ),
        (audio_input(transcription="on"), "invalid_type", "session.audio.input.transcription", "an object"),
    ],
)
def test_a_refusal_says_what_where_and_wanted(session: Any, reason: str, param: str, words: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_session(session)

    assert refused.value.reason == reason
    assert refused.value.param == param
    assert words in refused.value.message
