"""One worker as a parent talks to it: the socket, and the streams that share it.

`child.py` is the other side, `frames.py` what is said; `process.py` and `shared.py` find the worker.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from media_server.engines.workers.frames import WINDOW_BYTES, Frame, Kind, pack, take_frames
from media_server.errors import ConfigError, EngineDownError, EngineError, EngineMissingError

logger = logging.getLogger(__name__)

PIECE_BYTES = 3200
"""100 ms of 16 kHz sound: streams take turns in a worker after this much."""

REPLIES_MAX_BYTES = 16 * 1024 * 1024
"""A stream whose replies nobody reads fails when this much lies waiting."""

_FAILURES: dict[str, type[EngineError] | type[ConfigError]] = {
    error.code: error for error in (EngineMissingError, EngineDownError, ConfigError)
}


@dataclass(frozen=True, slots=True)
class Reply:
    """Something of a stream's result."""

    note: dict[str, Any]
    body: bytes


class WorkerStream:
    """One request in a worker. Used by one task."""

    def __init__(self, link: "Link", stream_id: int) -> None:
        self._link = link
        self._id = stream_id
        self._replies: deque[Reply] = deque()
        self._replies_bytes = 0
        self._credit_bytes = WINDOW_BYTES
        self._done = False
        self._error: EngineError | None = None
        self._changed = asyncio.Event()

    async def send(self, body: bytes) -> None:
        """Send input, waiting while the worker has 64 KiB of it to do.

        Raises:
            EngineError: the stream failed.
        """
        for at in range(0, len(body), PIECE_BYTES):
            piece = body[at : at + PIECE_BYTES]
            while self._credit_bytes < len(piece):
                await self._change()
            self._raise_if_failed()
            self._link.write(self._id, Kind.DATA, body=piece)
            self._credit_bytes -= len(piece)

    def end(self) -> None:
        """Say that there is no more input."""
        self._raise_if_failed()
        self._link.write(self._id, Kind.END)

    def take(self) -> Reply | None:
        """Return the next reply if it is here already.

        Raises:
            EngineError: the stream failed.
        """
        self._raise_if_failed()
        if not self._replies:
            return None
        reply = self._replies.popleft()
        self._replies_bytes -= len(reply.body)
        return reply

    async def get(self) -> Reply | None:
        """Return the next reply, waiting for one; None after the last. A worker that hangs ends the wait.

        Raises:
            EngineError: the stream failed.
        """
        while not self._replies and not self._done:
            await self._change()
        return self.take()

    def close(self) -> None:
        """Cancel what is not finished."""
        self._link.forget(self._id, cancel=not self._done and self._error is None)

    def handle(self, frame: Frame) -> None:
        """Take a frame of the worker's."""
        match frame.kind:
            case Kind.REPLY if self._replies_bytes + len(frame.body) > REPLIES_MAX_BYTES:
                self._link.write(self._id, Kind.CANCEL)
                self.fail(EngineError(f"a stream may have {REPLIES_MAX_BYTES} bytes of unread replies, and has more"))
            case Kind.REPLY:
                self._replies.append(Reply(frame.note, frame.body))
                self._replies_bytes += len(frame.body)
            case Kind.CREDIT:
                self._credit_bytes += int(frame.note["bytes"])
            case Kind.DONE:
                self._done = True
            case _:
                self.fail(EngineError(str(frame.note.get("message", f"unexpected frame {frame.kind!r}"))))
        self._changed.set()

    def fail(self, error: EngineError) -> None:
        """Let the stream's user see that it failed."""
        if not self._done and self._error is None:
            self._error = error
        self._changed.set()

    async def _change(self) -> None:
        self._raise_if_failed()
        self._changed.clear()
        await self._changed.wait()
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


class Link(asyncio.Protocol):
    """A parent's end of one worker's socket.

    Attributes:
        ready: the model is loaded, as `about` says.
        failure: why it cannot be loaded, nor will be soon.
        served: somebody's stream was served to its end; told to the first parent alone.
        asked_at_s: since when an answer of any kind is due; None: none is.
    """

    def __init__(self, changed: asyncio.Event) -> None:
        self.ready = False
        self.lost = False
        self.served = False
        self.about: dict[str, Any] = {}
        self.failure: EngineError | ConfigError | None = None
        self.streams: dict[int, WorkerStream] = {}
        self.asked_at_s: float | None = None
        self._changed = changed
        self._transport: asyncio.WriteTransport | None = None
        self._unread = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but its class

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for stream in self.streams.values():
            stream.fail(EngineError("the worker ended in the middle of this request"))
        self.streams.clear()
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self.asked_at_s = None
        self._unread += data
        try:
            frames = take_frames(self._unread)
        except ValueError:
            logger.exception("a worker sent what is no frame")
            self.abort()
            return
        for frame in frames:
            self._take(frame)

    def write(self, stream_id: int, kind: Kind, note: dict[str, Any] | None = None, *, body: bytes = b"") -> None:
        """Send a frame. What may lie unsent is bounded by each stream's window."""
        if self._transport is not None and not self.lost:
            self._transport.write(pack(stream_id, kind, note, body))

    def ask(self, kind: Kind, note: dict[str, Any] | None = None) -> None:
        """Send LOAD or PING, to which an answer is due."""
        self.asked_at_s = asyncio.get_running_loop().time()
        self.write(0, kind, note)

    def open(self, stream_id: int, request: dict[str, Any]) -> WorkerStream:
        """Begin a stream; it fails if the worker has no room for it in time."""
        stream = self.streams[stream_id] = WorkerStream(self, stream_id)
        self.write(stream_id, Kind.OPEN, request)
        return stream

    def forget(self, stream_id: int, *, cancel: bool) -> None:
        """End a stream; its late frames are dropped."""
        if self.streams.pop(stream_id, None) is not None and cancel:
            self.write(stream_id, Kind.CANCEL)

    def abort(self) -> None:
        """Close the socket; its streams fail."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.READY:
                self.ready = True
                self.about = frame.note
                self._changed.set()
            case Kind.SERVED:
                self.served = True
            case Kind.FAILED:
                self.failure = _FAILURES[frame.note["code"]](str(frame.note["message"]))
                self._changed.set()
            case _ if (stream := self.streams.get(frame.stream_id)) is not None:
                stream.handle(frame)
            case _:
                pass  # late: the stream was cancelled
