"""Events of the house as messages of the OpenAI Realtime API.

One function for each event that is more than one message or needs a thought; `_MESSAGES` at the end says which serves
which. Messages are plain dicts: a delta must cost microseconds.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from media_server.conversation import FunctionCall, SpokenMessage, Usage, new_id
from media_server.events import (
    BargeInMeasured,
    CallStarted,
    DigitPressed,
    ErrorHappened,
    Event,
    ItemAdded,
    ItemDeleted,
    ItemRetrieved,
    ItemTruncated,
    LevelsMeasured,
    PlayoutCleared,
    PlayoutDucked,
    PlayoutStarted,
    PlayoutStopped,
    ReplyArgumentsGrew,
    ReplyDone,
    ReplyItemAdded,
    ReplyItemDone,
    ReplyStarted,
    ReplyTextGrew,
    SettingsChanged,
    SoundCleared,
    SoundCommitted,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptFailed,
    TranscriptGrew,
    TranscriptGuessed,
    TurnMeasured,
    WordsSpoken,
)
from media_server.protocol.realtime_items import item_object, part_object
from media_server.protocol.realtime_session import session_object

_Message: TypeAlias = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


def write_event(event: Event) -> tuple[str, ...]:
    """Return the messages that tell of `event`, in order."""
    messages = _MESSAGES[type(event)](event)
    return tuple([_to_json({"event_id": new_id("event"), **message}) for message in messages])


def _to_json(message: _Message) -> str:
    # Half a character, out of a language model's token, is escaped: it cannot be sent as it is.
    text = _encode(message)
    return text if text.isascii() else _HALF_A_CHARACTER.sub(lambda half: f"\\u{ord(half.group()):04x}", text)


# --- the call and the conversation ---------------------------------------------------------------------------------


def _session(kind: str, event: CallStarted | SettingsChanged) -> list[_Message]:
    return [{"type": kind, "session": session_object(event.call_id, event.settings)}]


def _item_added(event: ItemAdded) -> list[_Message]:
    about = {"previous_item_id": event.previous_id, "item": item_object(event.item)}
    kinds = ("conversation.item.added", "conversation.item.done") if event.done else ("conversation.item.added",)
    return [{"type": kind, **about} for kind in kinds]


def _item_truncated(event: ItemTruncated) -> list[_Message]:
    return [
        {
            "type": "conversation.item.truncated",
            "item_id": event.item_id,
            "content_index": 0,
            "audio_end_ms": event.audio_end_ms,
        },
        {"type": "parley.heard", "item_id": event.item_id, "text": event.heard},
    ]


def _committed(event: SoundCommitted) -> list[_Message]:
    return [
        {
            "type": "input_audio_buffer.committed",
            "previous_item_id": event.previous_id,
            "item_id": event.item_id,
        }
    ]


def _transcription(kind: str, item_id: str, **about: Any) -> list[_Message]:
    kind = f"conversation.item.input_audio_transcription.{kind}"
    return [{"type": kind, "item_id": item_id, "content_index": 0, **about}]


def _transcript_completed(event: TranscriptCompleted) -> list[_Message]:
    usage = {"type": "duration", "seconds": round(event.seconds, 3)}
    return _transcription("completed", event.item_id, transcript=event.text, usage=usage)


def _transcript_failed(event: TranscriptFailed) -> list[_Message]:
    error = {"type": "transcription_error", "code": event.code, "message": event.message}
    return _transcription("failed", event.item_id, error=error)


# --- replies -------------------------------------------------------------------------------------------------------


def _reply_started(event: ReplyStarted) -> list[_Message]:
    response = {
        "object": "realtime.response",
        "id": event.reply_id,
        "status": "in_progress",
        "status_details": None,
        "output": [],
        "output_modalities": list(event.modalities),
        "metadata": event.metadata,
    }
    return [{"type": "response.created", "response": response}]


def _reply_item_added(event: ReplyItemAdded) -> list[_Message]:
    # Stock clients run a tool as soon as they see a completed call, also at its beginning.
    messages = _item_messages(replace(event, item=replace(event.item, status="in_progress")), "added")
    if isinstance(event.item, SpokenMessage):
        part = {"type": "audio", "transcript": ""} if event.item.modality == "audio" else {"type": "text", "text": ""}
        messages.append({"type": "response.content_part.added", **_part_place(event), "part": part})
    return messages


def _reply_text_grew(event: ReplyTextGrew) -> list[_Message]:
    spoken = event.modality == "audio"
    return [
        {
            "type": "response.output_audio_transcript.delta" if spoken else "response.output_text.delta",
            "response_id": event.reply_id,
            "item_id": event.item_id,
            "output_index": event.output_index,
            "content_index": 0,
            "delta": event.delta,
        }
    ]


def _reply_arguments_grew(event: ReplyArgumentsGrew) -> list[_Message]:
    return [
        {
            "type": "response.function_call_arguments.delta",
            "response_id": event.reply_id,
            "item_id": event.item_id,
            "output_index": event.output_index,
            "call_id": event.call_id,
            "delta": event.delta,
        }
    ]


def _reply_item_done(event: ReplyItemDone) -> list[_Message]:
    if isinstance(event.item, FunctionCall):
        return [_arguments_done(event, event.item), *_item_messages(event, "done")]
    place = _part_place(event)
    text = event.item.text
    if event.item.modality == "audio":
        messages: list[_Message] = [
            {"type": "response.output_audio.done", **place},
            {"type": "response.output_audio_transcript.done", **place, "transcript": text},
        ]
    else:
        messages = [{"type": "response.output_text.done", **place, "text": text}]
    messages.append({"type": "response.content_part.done", **place, "part": part_object(event.item)})
    return messages + _item_messages(event, "done")


def _arguments_done(event: ReplyItemDone, item: FunctionCall) -> _Message:
    return {
        "type": "response.function_call_arguments.done",
        "response_id": event.reply_id,
        "item_id": item.id,
        "output_index": event.output_index,
        "call_id": item.call_id,
        "name": item.name,
        "arguments": item.arguments,
    }


def _item_messages(event: ReplyItemAdded | ReplyItemDone, kind: str) -> list[_Message]:
    """Return what both the reply and, if it is in there, the conversation say of an item."""
    item = item_object(event.item)
    messages: list[_Message] = [
        {
            "type": f"response.output_item.{kind}",
            "response_id": event.reply_id,
            "output_index": event.output_index,
            "item": item,
        }
    ]
    if event.in_conversation:
        about = {"previous_item_id": event.previous_id, "item": item}
        messages.append({"type": f"conversation.item.{kind}", **about})
    return messages


def _part_place(event: ReplyItemAdded | ReplyItemDone) -> _Message:
    return {
        "response_id": event.reply_id,
        "item_id": event.item.id,
        "output_index": event.output_index,
        "content_index": 0,
    }


def _reply_done(event: ReplyDone) -> list[_Message]:
    response: _Message = {
        "object": "realtime.response",
        "id": event.reply_id,
        "status": event.status,
        "status_details": _status_details(event),
        "output": [item_object(item) for item in event.items],
        "output_modalities": list(event.modalities),
        "metadata": event.metadata,
    }
    if event.usage is not None:
        response["usage"] = _usage_object(event.usage)
    return [{"type": "response.done", "response": response}]


def _status_details(event: ReplyDone) -> _Message | None:
    if event.status == "completed":
        return None
    if event.status == "failed":
        error = {"type": "server_error", "code": event.reason or "internal_error"}
        if event.message is not None:
            error["message"] = event.message
        return {"type": "failed", "error": error}
    if event.reason is None:
        return {"type": event.status}
    return {"type": event.status, "reason": event.reason}


def _usage_object(usage: Usage) -> _Message:
    """Return token counts. All are of text: sound is recognised before and spoken after the language model."""
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {"text_tokens": usage.input_tokens, "audio_tokens": 0, "cached_tokens": 0},
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }


# --- what the API has no word for ----------------------------------------------------------------------------------


def _turn_measured(event: TurnMeasured) -> list[_Message]:
    stages = {stage: _tenths(value_ms) for stage, value_ms in asdict(event.latency).items()}
    return [{"type": "parley.latency", "response_id": event.reply_id, **stages}]


def _barge_in_measured(event: BargeInMeasured) -> list[_Message]:
    return [
        {
            "type": "parley.barge_in",
            "response_id": event.reply_id,
            "duck_ms": _tenths(event.duck_ms),
            "cut_ms": _tenths(event.cut_ms),
            "silence_ms": _tenths(event.silence_ms),
            "ear_ms": _tenths(event.ear_ms),
        }
    ]


def _levels_measured(event: LevelsMeasured) -> list[_Message]:
    return [
        {
            "type": "parley.levels",
            "caller_dbfs": _tenths(event.caller_dbfs),
            "agent_dbfs": _tenths(event.agent_dbfs),
            "caller_speaking": event.caller_speaking,
            "agent_speaking": event.agent_speaking,
        }
    ]


def _tenths(value: float | None) -> float | None:
    """Return a measurement rounded to 0.1; None also for what is no number, for which JSON has no word."""
    return round(value, 1) if value is not None and math.isfinite(value) else None


def _error(event: ErrorHappened) -> list[_Message]:
    error = {
        "type": event.kind,
        "code": event.code,
        "message": event.message,
        "param": event.param,
        "event_id": event.event_id,
    }
    return [{"type": "error", "error": error}]


_MESSAGES: dict[type[Event], Callable[[Any], list[_Message]]] = {
    CallStarted: lambda event: _session("session.created", event),
    SettingsChanged: lambda event: _session("session.updated", event),
    SpeechStarted: lambda event: [
        {
            "type": "input_audio_buffer.speech_started",
            "item_id": event.item_id,
            "audio_start_ms": event.audio_start_ms,
        }
    ],
    SpeechStopped: lambda event: [
        {
            "type": "input_audio_buffer.speech_stopped",
            "item_id": event.item_id,
            "audio_end_ms": event.audio_end_ms,
        }
    ],
    SoundCommitted: _committed,
    SoundCleared: lambda _: [{"type": "input_audio_buffer.cleared"}],
    ItemAdded: _item_added,
    ItemRetrieved: lambda event: [{"type": "conversation.item.retrieved", "item": item_object(event.item)}],
    ItemDeleted: lambda event: [{"type": "conversation.item.deleted", "item_id": event.item_id}],
    ItemTruncated: _item_truncated,
    TranscriptGrew: lambda event: _transcription("delta", event.item_id, delta=event.delta),
    TranscriptGuessed: lambda event: [
        {"type": "parley.partial", "item_id": event.item_id, "stable": event.stable, "tail": event.tail}
    ],
    TranscriptCompleted: _transcript_completed,
    TranscriptFailed: _transcript_failed,
    ReplyStarted: _reply_started,
    ReplyItemAdded: _reply_item_added,
    ReplyTextGrew: _reply_text_grew,
    ReplyArgumentsGrew: _reply_arguments_grew,
    ReplyItemDone: _reply_item_done,
    ReplyDone: _reply_done,
    PlayoutStarted: lambda event: [{"type": "output_audio_buffer.started", "response_id": event.reply_id}],
    PlayoutStopped: lambda event: [{"type": "output_audio_buffer.stopped", "response_id": event.reply_id}],
    PlayoutCleared: lambda event: [{"type": "output_audio_buffer.cleared", "response_id": event.reply_id}],
    PlayoutDucked: lambda event: [{"type": "parley.duck", "response_id": event.reply_id, "ducked": event.ducked}],
    WordsSpoken: lambda event: [
        {
            "type": "parley.spoken",
            "response_id": event.reply_id,
            "item_id": event.item_id,
            "chars": event.n_chars,
        }
    ],
    TurnMeasured: _turn_measured,
    BargeInMeasured: _barge_in_measured,
    LevelsMeasured: _levels_measured,
    DigitPressed: lambda event: [{"type": "parley.dtmf", "digit": event.digit, "duration_ms": event.duration_ms}],
    ErrorHappened: _error,
}
