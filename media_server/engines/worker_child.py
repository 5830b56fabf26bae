"""The inside of a model worker: one process, one model, many streams, no threads.

`python -m media_server.engines.worker_child` speaks frames on its standard input, which is one end of a Unix socket
pair. It imports nothing heavy itself, so that a worker that died is back soon.

    frame = stream id (uint32) | kind (uint8) | length of note (uint32) | length of body (uint32) | note | body

    to the child    LOAD      note: factory ("module:function") and its options; the first frame of all
                    OPEN      note: the request; a new stream
                    DATA      body: more input of the stream
                    END       no more input
                    CANCEL    forget the stream; nothing more is said about it
    to the parent   READY     note: about the model, which is loaded and warm
                    FAILED    note: it cannot be loaded, and why; no use in trying again
                    REPLY     note, body: something of a stream's result
                    CREDIT    note: that many bytes of the stream's input are used up: as many more may be sent
                    DONE      the stream's result is complete
                    ERROR     note: the stream failed

The streams take turns, one piece of input each, so that none waits for another's utterance. The parent never has more
than `WINDOW_BYTES` of a stream's input unused here: that, times the streams, bounds this side's memory.

The child ends when the socket does, thus with its parent. Ctrl-C is its parent's business.
"""

import importlib
import json
import os
import select
import signal
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeAlias

from media_server.errors import ConfigError, EngineMissingError

HEADER = struct.Struct("!IBII")
FRAME_MAX_BYTES = 4 * 1024 * 1024
"""No frame is longer; one that says so means that the two sides have lost each other."""

WINDOW_BYTES = 64 * 1024
"""Two seconds of 16 kHz sound."""

READ_BYTES = 256 * 1024

Send: TypeAlias = Callable[[dict[str, Any], bytes], bool]
"""Sends a reply; returns whether the stream is still wanted."""


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


class ModelStream(Protocol):
    """One request that a model is working on."""

    def feed(self, body: bytes, send: Send) -> None:
        """Take a piece of input."""

    def finish(self, send: Send) -> None:
        """Take the end of the input; the last reply is sent before this returns."""

    def close(self) -> None:
        """Give back what the stream held; called exactly once, however it ended."""


class Model(Protocol):
    """What a factory returns: loaded and warm. `about` is what the parent wants to know of it; it goes with READY."""

    about: dict[str, Any]

    def open(self, request: dict[str, Any]) -> ModelStream:
        """Begin a stream. Raises ValueError for a request that cannot be served."""


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


@dataclass(slots=True)
class _Open:
    stream: ModelStream
    pieces: deque[bytes] = field(default_factory=deque)
    ended: bool = False


class _ParentGoneError(Exception):
    """The other end of the socket is closed."""


class Worker:
    """Serves one model to one parent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unread = bytearray()
        self._model: Model | None = None
        self._open: dict[int, _Open] = {}
        self._turns: deque[int] = deque()
        self._has_turn: int | None = None

    def run(self) -> None:
        """Serve until the parent closes its end."""
        try:
            while True:
                self._read(wait=not self._turns)
                if self._turns:
                    self._take_turn(self._turns.popleft())
        except (_ParentGoneError, ConnectionError):
            return

    def _read(self, *, wait: bool) -> None:
        """Take in all that the parent has sent."""
        while select.select([self._sock], [], [], None if wait else 0)[0]:
            got = self._sock.recv(READ_BYTES)
            if not got:
                raise _ParentGoneError
            self._unread += got
            for frame in take_frames(self._unread):
                self._take(frame)
            wait = False

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.LOAD:
                self._load(frame.note)
            case Kind.OPEN:
                self._begin(frame.stream_id, frame.note)
            case Kind.DATA | Kind.END if (entry := self._open.get(frame.stream_id)) is not None:
                if not entry.pieces:
                    self._turns.append(frame.stream_id)
                if frame.kind is Kind.DATA:
                    entry.pieces.append(frame.body)
                else:
                    entry.ended = True
            case Kind.CANCEL:
                self._forget(frame.stream_id)
            case _:
                pass  # input of a stream that has failed meanwhile

    def _load(self, note: dict[str, Any]) -> None:
        module, _, name = note["factory"].partition(":")
        try:
            self._model = model = getattr(importlib.import_module(module), name)(note["options"])
        except (ConfigError, EngineMissingError) as error:
            self._send(0, Kind.FAILED, {"code": error.code, "message": str(error)})
        except ImportError as error:
            self._send(0, Kind.FAILED, {"code": EngineMissingError.code, "message": str(error)})
        else:
            self._send(0, Kind.READY, model.about)

    def _begin(self, stream_id: int, request: dict[str, Any]) -> None:
        if self._model is None:
            raise AssertionError("the parent opens streams only after READY")
        try:
            self._open[stream_id] = _Open(self._model.open(request))
        except Exception as error:  # a request that fails costs itself only
            self._refuse(stream_id, error)

    def _take_turn(self, stream_id: int) -> None:
        entry = self._open.get(stream_id)
        if entry is None:
            return

        def send(note: dict[str, Any], body: bytes) -> bool:
            self._send(stream_id, Kind.REPLY, note, body)
            self._read(wait=False)
            return stream_id in self._open

        self._has_turn = stream_id
        try:
            self._work(stream_id, entry, send)
        except (_ParentGoneError, ConnectionError):
            raise
        except Exception as error:  # a stream that fails costs itself only
            self._refuse(stream_id, error)
            self._open.pop(stream_id, None)
        finally:
            self._has_turn = None
            if stream_id not in self._open:
                entry.stream.close()

    def _work(self, stream_id: int, entry: _Open, send: Send) -> None:
        if entry.pieces:
            piece = entry.pieces[0]
            entry.stream.feed(piece, send)
            entry.pieces.popleft()
            self._send(stream_id, Kind.CREDIT, {"bytes": len(piece)})
            if (entry.pieces or entry.ended) and stream_id in self._open:
                self._turns.append(stream_id)
            return
        entry.stream.finish(send)
        if self._open.pop(stream_id, None) is not None:
            self._send(stream_id, Kind.DONE)

    def _forget(self, stream_id: int) -> None:
        entry = self._open.pop(stream_id, None)
        if entry is not None and stream_id != self._has_turn:  # in its own turn, it is closed when that is over
            entry.stream.close()

    def _refuse(self, stream_id: int, error: Exception) -> None:
        if not isinstance(error, ValueError):
            traceback.print_exception(error)
        self._send(stream_id, Kind.ERROR, {"message": str(error) or type(error).__name__})

    def _send(self, stream_id: int, kind: Kind, note: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self._sock.sendall(pack(stream_id, kind, note, body))


def main() -> None:
    """Serve on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a library that reads standard input must not eat frames
    Worker(sock).run()


if __name__ == "__main__":
    main()
