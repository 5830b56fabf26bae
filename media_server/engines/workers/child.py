"""The inside of a model worker: one process, one model, many streams, no threads.

`python -m media_server.engines.workers.child [N]` speaks frames on its standard input, which is one end of a Unix
socket pair, and with all who connect to the listening socket whose file descriptor is N. It imports nothing heavy
itself, so that a worker that died is back soon. What is said is in `frames.py`.

The streams take turns, one piece of input each, so that none waits for another's utterance. A parent never has more
than `WINDOW_BYTES` of a stream's input unused here: that, times the streams, bounds this side's memory. So many streams
as LOAD says are worked on, those of all parents together; the next ones wait in their order, for so long as LOAD says.

The child ends when its standard input does, thus with the parent that started it. Another one who goes costs their own
streams; so does one who takes in nothing for so long as LOAD says, or all others would wait as well. Ctrl-C is the
first parent's business; so is SIGTERM, which whoever ends a whole server may send to each of its processes.
"""

import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from media_server.engines.workers.counts import StreamCounts
from media_server.engines.workers.frames import Frame, Kind, pack, take_frames
from media_server.errors import ConfigError, EngineMissingError

READ_BYTES = 256 * 1024

Send: TypeAlias = Callable[[dict[str, Any], bytes], bool]
"""Sends a reply; returns whether the stream is still wanted."""


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

    def tidy(self) -> None:
        """Give up what was not needed for long. Called about once a second, between two turns."""


@dataclass(slots=True, eq=False)
class _Parent:
    """Somebody at the other end of a socket, and the streams that they opened."""

    sock: socket.socket
    unread: bytearray = field(default_factory=bytearray)
    streams: dict[int, "_Stream"] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Stream:
    """A request. `work` is None as long as it waits for room, at most until `wait_until_s`."""

    parent: _Parent
    id: int
    request: dict[str, Any]
    wait_until_s: float
    work: ModelStream | None = None
    pieces: deque[bytes] = field(default_factory=deque)
    ended: bool = False

    @property
    def wanted(self) -> bool:
        return self.parent.streams.get(self.id) is self


class _ParentGoneError(Exception):
    """The other end of the first socket is closed."""


class Worker:
    """Serves one model to its parent, and to all who connect to `listener`."""

    def __init__(self, sock: socket.socket, listener: socket.socket | None = None) -> None:
        self._first = _Parent(sock)
        self._parents = {sock: self._first}
        self._listener = listener
        self._model: Model | None = None
        self._streams_max = 0
        self._wait_s = self._stuck_s = 0.0
        self._count: Callable[[int], None] = lambda _: None
        self._served = False
        self._to_tidy = False
        self._working = 0
        self._waiting: deque[_Stream] = deque()
        self._turns: deque[_Stream] = deque()
        self._has_turn: _Stream | None = None

    def run(self) -> None:
        """Serve until the parent closes its end."""
        try:
            while True:
                self._read(wait=not self._turns)
                self._refuse_those_who_waited()
                if self._to_tidy:
                    self._tidy()
                if self._turns:
                    self._take_turn(self._turns.popleft())
        except _ParentGoneError:
            return

    def _tidy(self) -> None:
        self._to_tidy = False
        if self._model is not None:
            try:
                self._model.tidy()
            except Exception as error:  # it costs memory, and no stream
                traceback.print_exception(error)

    # --- sockets ---

    def _read(self, *, wait: bool) -> None:
        """Take in all that was sent."""
        until_s = self._waiting[0].wait_until_s - time.monotonic() if self._waiting else None
        limit_s = None if until_s is None else max(0.0, until_s)
        while ready := select.select(self._sockets(), [], [], limit_s if wait else 0)[0]:
            for sock in ready:
                if sock is self._listener:
                    self._accept(sock)
                elif sock in self._parents:  # an earlier one of these may have cost this one its place
                    self._read_parent(self._parents[sock])
            wait = False

    def _sockets(self) -> list[socket.socket]:
        if self._listener is None or self._model is None:
            return list(self._parents)
        return [*self._parents, self._listener]

    def _accept(self, listener: socket.socket) -> None:
        if self._model is None:
            raise AssertionError("nobody is let in before the model is loaded")
        try:
            sock, _ = listener.accept()
        except BlockingIOError:  # who wanted in has gone
            return
        sock.settimeout(self._stuck_s)
        parent = self._parents[sock] = _Parent(sock)
        self._send(parent, 0, Kind.READY, self._model.about)

    def _read_parent(self, parent: _Parent) -> None:
        try:
            got = parent.sock.recv(READ_BYTES)
        except ConnectionError:
            got = b""
        if not got:
            self._lose(parent)
            return
        parent.unread += got
        try:
            frames = take_frames(parent.unread)
        except ValueError:  # it costs who sent it, and nobody else
            traceback.print_exc()
            self._lose(parent)
            return
        for frame in frames:
            if parent.sock in self._parents:
                self._take(parent, frame)

    def _send(
        self, parent: _Parent, stream_id: int, kind: Kind, note: dict[str, Any] | None = None, body: bytes = b""
    ) -> None:
        if parent.sock not in self._parents:
            return
        try:
            parent.sock.sendall(pack(stream_id, kind, note, body))
        except (ConnectionError, TimeoutError):
            self._lose(parent)

    def _lose(self, parent: _Parent) -> None:
        """Forget somebody who has gone, or who is stuck."""
        if parent is self._first:
            raise _ParentGoneError
        del self._parents[parent.sock]
        parent.sock.close()
        for stream in sorted(parent.streams.values(), key=lambda stream: stream.work is not None):
            self._forget(stream)  # first those that wait: no room is given to them

    # --- frames ---

    def _take(self, parent: _Parent, frame: Frame) -> None:
        match frame.kind:
            case Kind.LOAD:
                self._load(frame.note)
            case Kind.PING:
                self._send(parent, 0, Kind.PONG)
                self._to_tidy = True
            case Kind.OPEN:
                self._open(parent, frame.stream_id, frame.note)
            case Kind.DATA | Kind.END if (stream := parent.streams.get(frame.stream_id)) is not None:
                if stream.work is not None and not stream.pieces:
                    self._turns.append(stream)
                if frame.kind is Kind.DATA:
                    stream.pieces.append(frame.body)
                else:
                    stream.ended = True
            case Kind.CANCEL if (stream := parent.streams.get(frame.stream_id)) is not None:
                self._forget(stream)
            case _:
                pass  # of a stream that has failed meanwhile

    def _load(self, note: dict[str, Any]) -> None:
        module, _, name = note["factory"].partition(":")
        try:
            model = getattr(importlib.import_module(module), name)(note["options"])
        except (ConfigError, EngineMissingError) as error:
            self._send(self._first, 0, Kind.FAILED, {"code": error.code, "message": str(error)})
            return
        except ImportError as error:
            self._send(self._first, 0, Kind.FAILED, {"code": EngineMissingError.code, "message": str(error)})
            return
        self._streams_max, self._wait_s, self._stuck_s = note["streams_max"], note["wait_s"], note["stuck_s"]
        if "counts" in note:
            path, index = note["counts"]
            self._count = partial(StreamCounts(path).write, index)
            self._count(0)
        self._model = model
        self._send(self._first, 0, Kind.READY, model.about)

    # --- streams ---

    def _open(self, parent: _Parent, stream_id: int, request: dict[str, Any]) -> None:
        stream = _Stream(parent, stream_id, request, time.monotonic() + self._wait_s)
        parent.streams[stream_id] = stream
        self._waiting.append(stream)
        self._give_room()

    def _give_room(self) -> None:
        """Begin the work of those who wait, as long as there is room."""
        if self._model is None:
            raise AssertionError("a parent opens streams only after READY")
        while self._waiting and self._working < self._streams_max:
            stream = self._waiting.popleft()
            try:
                stream.work = self._model.open(stream.request)
            except Exception as error:  # a request that fails costs itself only
                self._refuse(stream, error)
                continue
            self._working += 1
            if stream.pieces or stream.ended:
                self._turns.append(stream)
        self._count(self._working + len(self._waiting))

    def _refuse_those_who_waited(self) -> None:
        while self._waiting and self._waiting[0].wait_until_s <= time.monotonic():
            self._refuse(self._waiting.popleft(), ValueError(f"no worker had room within {self._wait_s:g} s"))
            self._count(self._working + len(self._waiting))

    def _take_turn(self, stream: _Stream) -> None:
        if stream.work is None or not stream.wanted:
            return

        def send(note: dict[str, Any], body: bytes) -> bool:
            self._send(stream.parent, stream.id, Kind.REPLY, note, body)
            self._read(wait=False)
            return stream.wanted

        self._has_turn = stream
        try:
            self._work(stream, stream.work, send)
        except _ParentGoneError:
            raise
        except Exception as error:  # a stream that fails costs itself only
            self._refuse(stream, error)
        finally:
            self._has_turn = None
            if not stream.wanted:
                self._close(stream)

    def _work(self, stream: _Stream, work: ModelStream, send: Send) -> None:
        if stream.pieces:
            piece = stream.pieces[0]
            work.feed(piece, send)
            stream.pieces.popleft()
            if stream.wanted:
                self._send(stream.parent, stream.id, Kind.CREDIT, {"bytes": len(piece)})
                if stream.pieces or stream.ended:
                    self._turns.append(stream)
            return
        work.finish(send)
        if stream.wanted:
            self._forget(stream)
            self._send(stream.parent, stream.id, Kind.DONE)
            if not self._served:
                self._served = True
                self._send(self._first, 0, Kind.SERVED)

    def _forget(self, stream: _Stream) -> None:
        stream.parent.streams.pop(stream.id, None)
        if stream is not self._has_turn:  # in its own turn, it is closed when that is over
            self._close(stream)

    def _close(self, stream: _Stream) -> None:
        if stream.work is not None:
            stream.work.close()
            stream.work = None
            self._working -= 1
        elif stream in self._waiting:
            self._waiting.remove(stream)
        self._give_room()

    def _refuse(self, stream: _Stream, error: Exception) -> None:
        if not isinstance(error, ValueError):
            traceback.print_exception(error)
        if stream.parent.streams.pop(stream.id, None) is not None:
            message = str(error) or type(error).__name__
            self._send(stream.parent, stream.id, Kind.ERROR, {"message": message})


def main() -> None:
    """Serve on standard input, and on the listening socket whose number is the argument."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=os.dup(0))
    listener = socket.socket(fileno=int(sys.argv[1])) if len(sys.argv) > 1 else None
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a library that reads standard input must not eat frames
    Worker(sock, listener).run()


if __name__ == "__main__":
    main()
