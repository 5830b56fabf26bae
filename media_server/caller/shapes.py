"""What an event of the wire must hold for us to read it. What lacks it is the server's mistake; the rest is ours."""

import json
from collections.abc import Iterator
from typing import Any

from media_server.caller.subtitles import STAGES

_TEXT = str
_NUMBER = (int, float)
_WANTED = {dict: "an object", list: "a list", type: "a text", tuple: "a number"}

# A key that ends in "?" may be missing or null.
_ITEM = {"id?": _TEXT, "content?": [{"text?": _TEXT, "transcript?": _TEXT}]}
_REPLY = {"response_id": _TEXT}
_RESPONSE = {"response": {"id": _TEXT, "output?": [_ITEM], "status_details?": {"error?": {}}}}
_TRANSCRIPTION = "conversation.item.input_audio_transcription"

SHAPES: dict[str, Any] = {
    f"{_TRANSCRIPTION}.delta": {"delta": _TEXT},
    f"{_TRANSCRIPTION}.completed": {"transcript": _TEXT},
    f"{_TRANSCRIPTION}.failed": {"error": {}},
    "conversation.item.added": {"item": _ITEM},
    "response.created": _RESPONSE,
    "response.done": _RESPONSE,
    "response.output_audio_transcript.delta": {**_REPLY, "delta": _TEXT},
    "response.output_audio_transcript.done": {"transcript": _TEXT},
    "response.output_text.delta": {**_REPLY, "delta": _TEXT},
    "response.output_text.done": {"text": _TEXT},
    "response.function_call_arguments.done": {"name": _TEXT, "arguments": _TEXT},
    "output_audio_buffer.started": _REPLY,
    "output_audio_buffer.stopped": _REPLY,
    "output_audio_buffer.cleared": _REPLY,
    "error": {"error": {}},
    "parley.partial": {"stable": _TEXT, "tail": _TEXT},
    "parley.heard": {"item_id": _TEXT, "text": _TEXT},
    "parley.latency": {**_REPLY, **{f"{stage}?": _NUMBER for stage in STAGES}},
    "parley.barge_in": {f"{stage}?": _NUMBER for stage in ("duck_ms", "cut_ms", "silence_ms", "ear_ms")},
}


def find_fault(event: object) -> str:
    """Return why `event`, as it came out of JSON, cannot be read; empty: it can. Nothing of what was said is in it."""
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return "wanted an object with a type"
    fault = next(_misfits(event, SHAPES.get(event["type"], {}), ""), "")
    return f"{event['type']!r}: {fault}" if fault else ""


def error_message(body: str) -> str | None:
    """Return what a server says of an error, from the body of its answer; None: it is not in the API's shape."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return None


def _misfits(value: Any, shape: Any, path: str) -> Iterator[str]:
    match shape, value:
        case dict(), dict():
            for key, inner in shape.items():
                name = key.removesuffix("?")
                if name == key or value.get(name) is not None:
                    yield from _misfits(value.get(name), inner, f"{path}.{name}" if path else name)
        case list(), list():
            for each in value:
                yield from _misfits(each, shape[0], f"{path}[]")
        case (type() | tuple(), _) if isinstance(value, shape):
            return
        case _:
            found = "missing" if value is None else type(value).__name__
            yield f"{path} is {found}, wanted {_WANTED[type(shape)]}"
