"""Well-formed things made wrong, by chance that is told by a random number generator alone."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

_BYTES = (0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF)
_SHORTS = (0, 1, 2, 3, 4, 5, 8, 0x7FFF, 0x8000, 0xFFFF)
_LONGS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 1e308, float("nan"), "", "x" * 5_000, "\ud800", "\x00", "é\u202e\U0001f600"),
    *([], {}, [[]], {"": {}}, [None] * 50),
)
_FIELDS = (
    *("", "-1", "0", "65536", "4294967296", "9" * 30, "1.5", "0x10", "nan", "٣", "²", "\x00", "é\u202e", "\ud800"),
    *("x" * 3_000, "::1", "fe80::1%eth0", "a.local", "999.0.0.1", "BUNDLE", ":", ";=;", "*", "opus/48000/2", "\t"),
)
_MAX_RANDOM = 200


def mutate(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Return one of the seeds with one to four things wrong; seldom all is chance, or nothing is left."""
    if rng.random() < 0.01:
        return rng.randbytes(rng.randrange(_MAX_RANDOM))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        rng.choice(_CHANGES)(data, rng, seeds)
    return bytes(data)


def mutate_sdp(seeds: Sequence[str], rng: random.Random) -> str:
    """Return one of the offers with one to four lines or fields wrong."""
    lines = rng.choice(seeds).split("\r\n")
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines[at:at] = [lines[at]] * rng.choice((1, 1, 1, 40, 1_200))
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                data = bytearray(lines[at].encode("utf-8", "surrogatepass"))
                rng.choice(_CHANGES)(data, rng, [b"a=mid:0"])
                lines[at] = data.decode("utf-8", "replace")
            case 4:
                other_line = rng.choice(rng.choice(seeds).split("\r\n"))
                lines.insert(at, other_line)
            case _:
                lines[at] = _change_field(lines[at], rng)
    return rng.choice(("\r\n", "\r\n", "\r\n", "\n", "\r")).join(lines)


def mutate_json(seeds: Sequence[str], rng: random.Random) -> str:
    """Return one of the messages with values replaced, or its text wrong."""
    if rng.random() < 0.5:
        return mutate([seed.encode() for seed in seeds], rng).decode("utf-8", "replace")
    if rng.random() < 0.005:
        return rng.choice(("[", '{"a":')) * 50_000
    message = json.loads(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = message
        while True:
            names: Any = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not names:
                break
            name = rng.choice(names)
            if isinstance(place[name], dict | list) and place[name] and rng.random() < 0.7:
                place = place[name]
                continue
            if isinstance(place, dict) and rng.random() < 0.3:
                place[rng.choice(("", "type", "session", "x" * 100, str(name).upper()))] = place.pop(name)
            else:
                place[name] = _alike(place[name], rng) if rng.random() < 0.5 else copy.deepcopy(rng.choice(_VALUES))
            break
    return json.dumps(message, ensure_ascii=rng.random() < 0.5)


# --- bytes -----------------------------------------------------------------------------------------------------------


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    for _bit in range(rng.randint(1, 8) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut_end(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _extend(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    data += rng.randbytes(rng.choice((1, 2, 3, 4, 8, 64)))


def _repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    begin, end = _slice(data, rng)
    data[begin:begin] = data[begin:end]


def _cut_out(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    begin, end = _slice(data, rng)
    del data[begin:end]


def _scramble(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    begin, end = _slice(data, rng)
    data[begin:end] = rng.randbytes(end - begin)


def _set_byte(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_BYTES)


def _set_short(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if len(data) >= 2:
        at = rng.randrange(len(data) // 2) * 2
        data[at : at + 2] = rng.choice((*_SHORTS, len(data), rng.randrange(1 << 16))).to_bytes(2)


def _set_long(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    if len(data) >= 4:
        at = rng.randrange(len(data) // 4) * 4
        data[at : at + 4] = rng.choice((*_LONGS, rng.randrange(1 << 32))).to_bytes(4)


def _splice(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


def _alike(value: Any, rng: random.Random) -> Any:
    """Return a value of the same type, if it has one that is simple."""
    match value:
        case bool():
            return not value
        case int() | float():
            return rng.choice((0, 1, -1, value * 2, value + 1, 10**6))
        case str():
            return rng.choice(("", "x", value * 2, value[:-1], "auto", "none", "text", "é", "e" * 500))
    return value


def _slice(data: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice((1, 2, 4, 8, 16, 64)))


_Change = Callable[[bytearray, random.Random, Sequence[bytes]], None]
_CHANGES: tuple[_Change, ...] = (
    *(_flip, _cut_end, _extend, _repeat, _cut_out, _scramble, _set_byte),
    *(_set_short, _set_short, _set_long, _splice),  # lengths and counts have two bytes in all of these formats
)


def _change_field(line: str, rng: random.Random) -> str:
    """Return the line with what stands between two of its separators replaced."""
    separators = [at for at, sign in enumerate(line) if sign in " :=/;,"]
    if not separators:
        return rng.choice(_FIELDS)
    begin = rng.choice(separators)
    end = next((at for at in separators if at > begin), len(line))
    return line[: begin + 1] + rng.choice(_FIELDS) + line[end:]
