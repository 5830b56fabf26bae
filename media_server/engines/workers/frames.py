"""What is said between a model worker and its parents: length-prefixed frames on a Unix socket.

    frame = stream id (uint32) | kind (uint8) | length of note (uint32) | length of body (uint32) | note | body

    to the child    LOAD      note: factory ("module:function"), options, streams_max, wait_s, stuck_s; if it is shared,
                              counts: the file and the line of `StreamCounts`. The first frame of all, on standard input
                    PING      the child shall say something: one that hangs does not
                    OPEN      note: the request; a new stream
                    DATA      body: more input of the stream
                    END       no more input
                    CANCEL    forget the stream; nothing more is said about it
    to a parent     READY     note: about the model, which is loaded and warm
                    FAILED    note: it cannot be loaded, and why; no use in trying again
                    PONG      it does not hang
                    REPLY     note, body: something of a stream's result
                    CREDIT    note: that many bytes of the stream's input are used up: as many more may be sent
                    DONE      the stream's result is complete
                    SERVED    to the first parent, once: a stream of anybody's is done
                    ERROR     note: the stream failed

`child.py` is the worker's end, `link.py` a parent's.
"""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

HEADER = struct.Struct("!IBII")
FRAME_MAX_BYTES = 4 * 1024 * 1024
"""No frame is longer; one that says so means that the two sides have lost each other."""

WINDOW_BYTES = 64 * 1024
"""Two seconds of 16 kHz sound."""


class Kind(IntEnum):
    """What a frame says; see the table above."""

    LOAD = 1
    OPEN = 2
    DATA = 3
    END = 4
    CANCEL = 5
    READY = 6
    FAILED = 7
    REPLY = 8
    CREDIT = 9
    DONE = 10
    ERROR = 11
    PING = 12
    PONG = 13
    SERVED = 14


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; see the table above."""

    stream_id: int
    kind: Kind
    note: dict[str, Any]
    body: bytes


def pack(stream_id: int, kind: Kind, note: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    """Return one frame as bytes."""
    note_bytes = json.dumps(note).encode() if note else b""
    return HEADER.pack(stream_id, kind, len(note_bytes), len(body)) + note_bytes + body


def take_frames(unread: bytearray) -> list[Frame]:
    """Take the whole frames off the front of `unread`.

    Raises:
        ValueError: that cannot be a frame.
    """
    frames: list[Frame] = []
    at = 0
    while len(unread) - at >= HEADER.size:
        stream_id, kind, note_bytes, body_bytes = HEADER.unpack_from(unread, at)
        if note_bytes + body_bytes > FRAME_MAX_BYTES:
            raise ValueError(f"a frame has at most {FRAME_MAX_BYTES} bytes, got {note_bytes + body_bytes}")
        start = at + HEADER.size
        if len(unread) - start < note_bytes + body_bytes:
            break
        at = start + note_bytes + body_bytes
        note = json.loads(unread[start : start + note_bytes]) if note_bytes else {}
        frames.append(Frame(stream_id, Kind(kind), note, bytes(unread[start + note_bytes : at])))
    del unread[:at]
    return frames
