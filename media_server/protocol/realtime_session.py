"""The `session` object of the OpenAI Realtime API, both ways: settings that a client asks for, settings as they are.

Changes are a dict by the names of `Settings` that holds only what the client spoke of; `events.merge_settings` lays it
over settings.
Two of its values are merged themselves and not put in place of the old:

    turn_detection      None, or a dict by the names of `TurnDetection`
    extra               a dict by places on the wire, such as `audio.input.noise_reduction`; None takes one out

A null on the wire clears a field: it gets the value that `Settings()` gives it. A null for `audio` or one of its two
sides says nothing, for there is nothing to clear it to.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from media_server.events import Settings, TurnDetection
from media_server.protocol.realtime_fields import (
    join,
    read_choice,
    read_flag,
    read_int,
    read_list,
    read_name,
    read_number,
    read_object,
    read_text,
    required,
    unsupported,
    wrong_type,
    wrong_value,
)

MAX_REPLY_TOKENS = 1_000_000
"""No model writes more; the wire's word for no limit is `inf`."""

MAX_SILENCE_MS = 10_000

_Reader: TypeAlias = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class _Known:
    """What one object of the wire may hold: fields of ours, and what we only keep to give it back."""

    ours: Mapping[str, tuple[str, _Reader]]
    kept: Mapping[str, _Reader] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names that are known."""
        return (*self.ours, *self.kept)


def parse_session(value: Any) -> dict[str, Any]:
    """Return the changes that a `session` object asks for.

    Raises:
        BadRequestError: it has an unknown field, or a value that cannot be.
    """
    return read_changes(read_object(value, "session", SESSION_NAMES, _ELSEWHERE), "session")


def read_changes(fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the changes that the fields of a session, or of a reply's own settings, ask for. All names are known."""
    changes, extra = _read(_SESSION, {name: fields[name] for name in fields if name in _SESSION.names}, place, "")
    if fields.get("type") is not None:
        _read_session_type(fields["type"], join(place, "type"))
    audio = read_object(_or(fields.get("audio"), {}), join(place, "audio"), ("input", "output"))
    for side, read_side in (("input", _read_input), ("output", _read_output)):
        if audio.get(side) is not None:
            side_changes, side_extra = read_side(audio[side], f"{place}.audio.{side}")
            changes |= side_changes
            extra |= side_extra
    return {**changes, "extra": extra} if extra else changes


def session_object(call_id: str, settings: Settings) -> dict[str, Any]:
    """Return settings as a client sees them."""
    extra = settings.extra
    session: dict[str, Any] = {
        "type": "realtime",
        "object": "realtime.session",
        "id": call_id,
        "model": settings.model,
        "output_modalities": list(settings.modalities),
        "instructions": settings.instructions,
        "tools": list(settings.tools),
        "tool_choice": _tool_choice_object(settings.tool_choice),
        "max_output_tokens": "inf" if settings.max_tokens is None else settings.max_tokens,
        "tracing": None,
        "prompt": None,
        "include": None,
        "truncation": "auto",
        "audio": {
            "input": {
                "format": extra.get("audio.input.format", _FORMAT),
                "noise_reduction": extra.get("audio.input.noise_reduction"),
                "transcription": _transcription_object(settings),
                "turn_detection": _turn_detection_object(settings),
            },
            "output": {
                "format": extra.get("audio.output.format", _FORMAT),
                "voice": settings.voice,
                "speed": settings.speed,
            },
        },
    }
    session |= {name: extra[name] for name in _SESSION.kept if name in extra}
    if settings.temperature is not None:
        session["temperature"] = settings.temperature
    return session


def _read(known: _Known, fields: Mapping[str, Any], place: str, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return changes and extra. `prefix`: where the object stands in a session, for the names in extra."""
    changes: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        where = join(place, name)
        if name in known.kept:
            extra[join(prefix, name)] = None if value is None else known.kept[name](value, where)
        else:
            ours, read = known.ours[name]
            changes[ours] = _CLEARED[ours] if value is None else read(value, where)
    return changes, extra


def _read_input(value: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = read_object(value, place, (*_INPUT.names, "transcription", "turn_detection"))
    plain = {name: fields[name] for name in fields if name in _INPUT.names}
    changes, extra = _read(_INPUT, plain, place, "audio.input")
    if "transcription" in fields:
        more, more_extra = _read_transcription(fields["transcription"], f"{place}.transcription")
        changes |= more
        extra |= more_extra
    if "turn_detection" in fields:
        turn, turn_extra = _read_turn_detection(fields["turn_detection"], f"{place}.turn_detection")
        changes["turn_detection"] = turn
        extra |= turn_extra
    return changes, extra


def _read_output(value: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return _read(_OUTPUT, read_object(value, place, _OUTPUT.names), place, "audio.output")


def _read_transcription(value: Any, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    prefix = "audio.input.transcription"
    if value is None:
        changes, extra = _read(_TRANSCRIPTION, dict.fromkeys(_TRANSCRIPTION.names), place, prefix)
        return {**changes, "transcribe": False}, extra
    changes, extra = _read(_TRANSCRIPTION, read_object(value, place, _TRANSCRIPTION.names), place, prefix)
    return {**changes, "transcribe": True}, extra


def _read_turn_detection(value: Any, place: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    prefix = "audio.input.turn_detection"
    if value is None:
        return None, {join(prefix, name): None for name in _TURN_DETECTION.kept}
    return _read(_TURN_DETECTION, read_object(value, place, _TURN_DETECTION.names), place, prefix)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# --- one reader for each value -------------------------------------------------------------------------------------


def _read_session_type(value: Any, place: str) -> str:
    if value == "transcription":
        raise unsupported(place, "sessions that only transcribe are not served; the one type is 'realtime'")
    return read_choice(value, place, ("realtime",))


def _read_modalities(value: Any, place: str) -> tuple[str, ...]:
    if read_list(value, place) not in (["audio"], ["text"]):
        raise wrong_value(value, place, "['audio'] (which brings its transcript) or ['text']")
    return tuple(value)


def _read_tools(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    return tuple(_read_tool(tool, f"{place}[{index}]") for index, tool in enumerate(read_list(value, place)))


def _read_tool(value: Any, place: str) -> dict[str, Any]:
    """Return a tool that has all four fields, and those that the client left out or null with nothing in them."""
    if isinstance(value, dict) and value.get("type") == "mcp":
        raise unsupported(place, "MCP is not spoken here; give functions as tools")
    tool = read_object(value, place, ("type", "name", "description", "parameters", "strict"))
    read_choice(required(tool, "type", place), join(place, "type"), ("function",))
    _read_tool_name(required(tool, "name", place), join(place, "name"))
    read_text(_or(tool.get("description"), ""), join(place, "description"))
    parameters = _or(tool.get("parameters"), {"type": "object", "properties": {}})
    _read_any_object(parameters, join(place, "parameters"))
    given = {name: each for name, each in tool.items() if each is not None}
    return {"description": "", **given, "parameters": parameters}


def _read_tool_name(value: Any, place: str) -> str:
    """Return the name of a function; the rule is that of every OpenAI-compatible chat endpoint."""
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", read_text(value, place)):
        raise wrong_value(value, place, "1 to 64 letters, digits, '_' or '-'")
    return str(value)


def _read_tool_choice(value: Any, place: str) -> str:
    if isinstance(value, str):
        return read_choice(value, place, _TOOL_CHOICES)
    choice = read_object(value, place, ("type", "name", "server_label"))
    if choice.get("type") == "mcp":
        raise unsupported(place, "MCP is not spoken here; choose a function")
    read_choice(required(choice, "type", place), join(place, "type"), ("function",))
    return _read_tool_name(required(choice, "name", place), join(place, "name"))


def _read_max_tokens(value: Any, place: str) -> int | None:
    if value == "inf":
        return None
    if isinstance(value, str):
        raise wrong_type(value, place, f"'inf' or a whole number from 1 to {MAX_REPLY_TOKENS}")
    return read_int(value, place, 1, MAX_REPLY_TOKENS)


def _read_voice(value: Any, place: str) -> str:
    if isinstance(value, dict):
        voice = read_object(value, place, ("id",))
        return _read_label(required(voice, "id", place), join(place, "id"))
    return _read_label(value, place)


def _read_label(value: Any, place: str) -> str:
    """Return the name of a model or a voice; some are paths in a hub."""
    return read_name(value, place, 256)


def _read_idle_timeout(value: Any, place: str) -> None:
    raise unsupported(place, "the agent does not speak up by itself when the caller is silent; leave it out or null")


def _read_any_object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(value, place, "an object")
    return value


def _read_word_or_object(value: Any, place: str) -> Any:
    if not isinstance(value, str | dict):
        raise wrong_type(value, place, "a string or an object")
    return value


def _read_format(value: Any, place: str) -> dict[str, Any]:
    audio_format = read_object(value, place, ("type", "rate"))
    kind = required(audio_format, "type", place)
    read_choice(kind, join(place, "type"), ("audio/pcm", "audio/pcmu", "audio/pcma"))
    return audio_format


def _read_ms(value: Any, place: str) -> int:
    return read_int(value, place, 0, MAX_SILENCE_MS)


def _read_eagerness(value: Any, place: str) -> str:
    return read_choice(value, place, ("low", "medium", "high", "auto"))


# --- settings as they are ------------------------------------------------------------------------------------------


def _tool_choice_object(tool_choice: str) -> str | dict[str, str]:
    return tool_choice if tool_choice in _TOOL_CHOICES else {"type": "function", "name": tool_choice}


def _transcription_object(settings: Settings) -> dict[str, Any] | None:
    if not settings.transcribe:
        return None
    prefix = "audio.input.transcription."
    transcription = {name: settings.extra.get(prefix + name) for name in _TRANSCRIPTION.kept}
    transcription |= {"language": settings.language, "prompt": settings.prompt}
    return {name: value for name, value in transcription.items() if value is not None}


def _turn_detection_object(settings: Settings) -> dict[str, Any] | None:
    turn = settings.turn_detection
    if turn is None:
        return None
    prefix = "audio.input.turn_detection."
    detection: dict[str, Any] = {wire: getattr(turn, ours) for wire, (ours, _) in _TURN_DETECTION.ours.items()}
    if turn.kind == "semantic_vad":
        kept = {name: settings.extra.get(prefix + name) for name in _TURN_DETECTION.kept}
        detection |= {"eagerness": "auto", **{name: value for name, value in kept.items() if value is not None}}
    return {name: value for name, value in detection.items() if value is not None}


# --- the names of the wire, and ours -------------------------------------------------------------------------------

_TOOL_CHOICES = ("auto", "none", "required")

_FORMAT = {"type": "audio/pcm", "rate": 24_000}
"""What a session says of its sound unless it was told otherwise; on WebRTC it says nothing, the SDP decides."""

_SESSION = _Known(
    ours={
        "model": ("model", _read_label),
        "instructions": ("instructions", read_text),
        "output_modalities": ("modalities", _read_modalities),
        "tools": ("tools", _read_tools),
        "tool_choice": ("tool_choice", _read_tool_choice),
        "max_output_tokens": ("max_tokens", _read_max_tokens),
        "temperature": ("temperature", lambda value, place: read_number(value, place, 0, 2)),
    },
    kept={
        "tracing": _read_word_or_object,
        "include": read_list,
        "prompt": _read_any_object,
        "truncation": _read_word_or_object,
        "parallel_tool_calls": read_flag,
        "reasoning": _read_any_object,
    },
)
_INPUT = _Known(ours={}, kept={"format": _read_format, "noise_reduction": _read_any_object})
_OUTPUT = _Known(
    ours={
        "voice": ("voice", _read_voice),
        # The range of the OpenAI Realtime API.
        "speed": ("speed", lambda value, place: read_number(value, place, 0.25, 1.5)),
    },
    kept={"format": _read_format},
)
_TRANSCRIPTION = _Known(
    ours={"language": ("language", read_name), "prompt": ("prompt", read_text)},
    kept={"model": _read_label, "keywords": read_list, "languages": read_list, "delay": read_name},
)
_TURN_DETECTION = _Known(
    ours={
        "type": ("kind", lambda value, place: read_choice(value, place, ("server_vad", "semantic_vad"))),
        "threshold": ("threshold", lambda value, place: read_number(value, place, 0, 1)),
        "prefix_padding_ms": ("prefix_ms", _read_ms),
        "silence_duration_ms": ("silence_ms", _read_ms),
        "create_response": ("create_reply", read_flag),
        "interrupt_response": ("interrupt", read_flag),
    },
    kept={"eagerness": _read_eagerness, "model_version": _read_label, "idle_timeout_ms": _read_idle_timeout},
)

SESSION_NAMES = ("type", "audio", *_SESSION.names)
REPLY_NAMES = tuple(name for name in SESSION_NAMES if name not in {"type", "model", "tracing", "include", "truncation"})
"""What a `response.create` may set for its own reply."""

_CLEARED = {
    name: getattr(defaults, name)
    for known, defaults in (
        (_SESSION, Settings()),
        (_OUTPUT, Settings()),
        (_TRANSCRIPTION, Settings()),
        (_TURN_DETECTION, TurnDetection()),
    )
    for name, _ in known.ours.values()
}

# Where the fields of the API's beta form went.
_ELSEWHERE = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "speed": "audio.output.speed",
    "turn_detection": "audio.input.turn_detection",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "max_response_output_tokens": "max_output_tokens",
}
