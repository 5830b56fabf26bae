"""One worker as its parent talks to it: the socket, and the streams that share it.

`worker_child` is the other side, and draws the frames; `worker` keeps the processes alive.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from media_server.engines.worker_child import WINDOW_BYTES, Frame, Kind, pack, take_frames
from media_server.errors import ConfigError, EngineError, EngineMissingError

logger = logging.getLogger(__name__)

PIECE_BYTES = 3200
"""100 ms of 16 kHz sound: streams take turns in a worker after this much."""

REPLIES_MAX_BYTES = 16 * 1024 * 1024
"""A stream whose replies nobody reads fails when this much lies waiting."""


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
        self._ended = False
        self._done = False
        self._error: EngineError | None = None
        self._changed = asyncio.Event()

    @property
    def awaited(self) -> bool:
        """Return whether the worker has work of this stream."""
        over = self._done or self._error is not None
        return (self._ended or self._credit_bytes < WINDOW_BYTES) and not over

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
        self._ended = True

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
    """The parent's end of one worker's socket."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.ready = False
        self.lost = False
        self.succeeded = False
        self.about: dict[str, Any] = {}
        self.failure: EngineError | ConfigError | None = None
        self.streams: dict[int, WorkerStream] = {}
        self.heard_at_s = asyncio.get_running_loop().time()
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
        self.heard_at_s = asyncio.get_running_loop().time()
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
            if not self.busy:
                self.heard_at_s = asyncio.get_running_loop().time()
            self._transport.write(pack(stream_id, kind, note, body))

    def open(self, stream_id: int, request: dict[str, Any]) -> WorkerStream:
        """Begin a stream."""
        stream = self.streams[stream_id] = WorkerStream(self, stream_id)
        self.write(stream_id, Kind.OPEN, request)
        return stream

    def forget(self, stream_id: int, *, cancel: bool) -> None:
        """End a stream; its late frames are dropped."""
        if self.streams.pop(stream_id, None) is not None:
            if cancel:
                self.write(stream_id, Kind.CANCEL)
            self._changed.set()

    @property
    def busy(self) -> bool:
        """Return whether the worker owes us something."""
        return any(stream.awaited for stream in self.streams.values())

    def abort(self) -> None:
        """Close the socket; the worker ends, and its streams fail."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.READY:
                self.ready = True
                self.about = frame.note
                self._changed.set()
            case Kind.FAILED:
                message = str(frame.note["message"])
                missing = frame.note["code"] == EngineMissingError.code
                self.failure = EngineMissingError(message) if missing else ConfigError(message)
                self._changed.set()
            case _ if (stream := self.streams.get(frame.stream_id)) is not None:
                self.succeeded = self.succeeded or frame.kind is Kind.DONE
                stream.handle(frame)
            case _:
                pass  # late: the stream was cancelled
