"""Reads what a client sent: each value is checked by a function that says where it stands, what was found and wanted.

A place is written as the client would write it: `session.audio.output.speed`, `item.content[0].text`. Reasons are the
codes of the OpenAI Realtime API: `invalid_type`, `invalid_value`, `unknown_parameter`, `missing_required_parameter`.
"""

import json
import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from media_server.errors import BadRequestError, TooLargeError

MAX_MESSAGE_BYTES = 65_536
"""The largest message: what aiortc's answers allow (`a=max-message-size:65536`). Reading one takes less than 5 ms."""

MAX_LIST = 128
"""The longest list: so many tools may a session of the API have."""

MAX_DEPTH = 64
"""How deep lists and objects may be nested: far deeper than any schema of a tool, far flatter than Python's stack."""

MAX_SHOWN_CHARS = 80


def read_json(text: str) -> Any:
    """Return what `text` holds. Safe to store and to send on: finite numbers, whole characters, no NUL, not too deep.

    Raises:
        BadRequestError: it is not JSON, or one of the above does not hold.
        TooLargeError: it is larger than `MAX_MESSAGE_BYTES`.
    """
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"a message may have {MAX_MESSAGE_BYTES} bytes, got {n_bytes}", reason="string_above_max_length"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_read_float)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise BadRequestError(f"a message must be JSON: {error}", reason="invalid_json") from None
    _check_leaves(value)
    return value


def read_object(
    value: Any, place: str, known: Collection[str], elsewhere: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return an object whose names are all `known`. `elsewhere`: where a name stands that people put in this place.

    Raises:
        BadRequestError: it is not an object, or has a name that is not known.
    """
    if not isinstance(value, dict):
        raise wrong_type(value, place, "an object")
    for name in value:
        if name not in known:
            guess = nearest(name, (*known, *(elsewhere or {})))
            near = (elsewhere or {}).get(guess or "", guess)
            raise BadRequestError(
                f"{place or 'the message'} has no field {shown(name)}" + (f"; did you mean {near!r}?" if near else ""),
                param=join(place, name[:MAX_SHOWN_CHARS]),
                reason="unknown_parameter",
            )
    return value


def read_list(value: Any, place: str) -> list[Any]:
    """Return a list of at most `MAX_LIST`."""
    if not isinstance(value, list):
        raise wrong_type(value, place, "a list")
    if len(value) > MAX_LIST:
        raise BadRequestError(
            f"{place} may hold {MAX_LIST}, got {len(value)}", param=place, reason="array_above_max_length"
        )
    return value


def read_text(value: Any, place: str) -> str:
    """Return a string, empty or not."""
    if not isinstance(value, str):
        raise wrong_type(value, place, "a string")
    return value


def read_name(value: Any, place: str, most_chars: int = 64) -> str:
    """Return a string of 1 to `most_chars` characters, such as an id."""
    if not 1 <= len(read_text(value, place)) <= most_chars:
        raise wrong_value(value, place, f"a string of 1 to {most_chars} characters")
    return str(value)


def read_choice(value: Any, place: str, choices: Collection[str]) -> str:
    """Return one of a few words."""
    if read_text(value, place) not in choices:
        raise wrong_value(value, place, " or ".join(repr(choice) for choice in choices))
    return str(value)


def read_flag(value: Any, place: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise wrong_type(value, place, "true or false")
    return value


def read_int(value: Any, place: str, least: int, most: int) -> int:
    """Return a whole number from `least` to `most`. JavaScript's 500.0 is one."""
    number = read_number(value, place, least, most)
    if number != int(number):
        raise wrong_value(value, place, f"a whole number from {least} to {most}")
    return int(number)


def read_number(value: Any, place: str, least: float, most: float) -> float:
    """Return a number from `least` to `most`."""
    wanted = f"a number from {least} to {most}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(value, place, wanted)
    if not least <= value <= most:
        raise wrong_value(value, place, wanted)
    return float(value)


def required(fields: Mapping[str, Any], name: str, place: str) -> Any:
    """Return a field that must be there; null counts as missing.

    Raises:
        BadRequestError: it is missing.
    """
    value = fields.get(name)
    if value is None:
        where = join(place, name)
        raise BadRequestError(f"{where} is missing", param=where, reason="missing_required_parameter")
    return value


def join(place: str, name: str) -> str:
    """Return the place of a field in an object that stands at `place`."""
    return f"{place}.{name}" if place else name


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that looks most like `name`, if one does."""
    return next(iter(get_close_matches(name[:MAX_SHOWN_CHARS], list(known), n=1)), None)


def shown(value: Any) -> str:
    """Return a value as JSON, cut to what fits in a message."""
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def wrong_type(value: Any, place: str, wanted: str) -> BadRequestError:
    """Return the error for a value of the wrong type."""
    return _wrong(value, place, wanted, "invalid_type")


def wrong_value(value: Any, place: str, wanted: str) -> BadRequestError:
    """Return the error for a value of the right type that cannot be."""
    return _wrong(value, place, wanted, "invalid_value")


def unsupported(place: str, why: str) -> BadRequestError:
    """Return the error for something that the protocol has and this server has not. `why` says what to do instead."""
    return BadRequestError(f"{place} cannot be served: {why}", param=place, reason="unsupported")


def _wrong(value: Any, place: str, wanted: str, reason: str) -> BadRequestError:
    where = place or "a message"
    return BadRequestError(f"{where} must be {wanted}, got {shown(value)}", param=place or None, reason=reason)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _too_deep() -> BadRequestError:
    return BadRequestError(
        f"a message may be nested {MAX_DEPTH} deep, this one is nested deeper", reason="invalid_json"
    )


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_SHOWN_CHARS]} is larger than any number")
    return value


def _check_leaves(value: Any) -> None:
    """Refuse what JSON can say and others choke on: PostgreSQL on NUL, UTF-8 on half a character, Python on depth.

    One layer at a time and by exact types, which is all that `json` makes.
    """
    layer, depth = [value], 0
    while layer:
        below: list[Any] = []
        for each in layer:
            kind = type(each)
            if kind is str:
                _check_characters(each)
            elif kind is dict:
                below += each
                below += each.values()
            elif kind is list:
                below += each
        layer, depth = below, depth + 1
        if depth > MAX_DEPTH and below:
            raise _too_deep()


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise BadRequestError(f"a NUL character in {shown(text)}", reason="invalid_value")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequestError(f"half a character (a lone surrogate) in {shown(text)}", reason="invalid_value") from None
