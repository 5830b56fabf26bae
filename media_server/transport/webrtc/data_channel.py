"""Commands and events over a WebRTC data channel.

A peer that reads slowly is not sent more than it takes: while more than 64 KiB wait in the channel, events wait here,
deltas of the same text grow together, and of what only shows the present (levels, guesses, words spoken) the newest
stays. Nothing else is lost; a peer that lets 1,000 events wait is cut off.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace

from aiortc import RTCDataChannel

from media_server.errors import ClientError
from media_server.events import (
    Command,
    ErrorHappened,
    Event,
    LevelsMeasured,
    ReplyTextGrew,
    TranscriptGrew,
    TranscriptGuessed,
    Wire,
    WordsSpoken,
    error_event,
)
from media_server.transport.webrtc.aiortc_private import AIORTC_ERRORS

logger = logging.getLogger(__name__)

HIGH_WATER_BYTES = 65_536
LOW_WATER_BYTES = 32_768
MAX_COMMANDS = 64
MAX_WAITING_EVENTS = 1000


class DataChannel:
    """A `Channel` over the data channel that the peer opened."""

    def __init__(self, channel: RTCDataChannel, wire: Wire) -> None:
        self._channel = channel
        self._wire = wire
        self._commands: deque[Command] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._waiting: list[Event] = []
        self._closed = channel.readyState in ("closing", "closed")
        channel.bufferedAmountLowThreshold = LOW_WATER_BYTES
        channel.on("message", self._on_message)
        channel.on("open", self._flush)
        channel.on("bufferedamountlow", self._flush)
        channel.on("close", self._end)

    @property
    def closed(self) -> bool:
        """Return whether one side has closed the channel."""
        return self._closed

    async def commands(self) -> AsyncGenerator[Command, None]:
        """Yield commands until the far end is gone. One reader."""
        while True:
            while self._commands:
                yield self._commands.popleft()
            if self._closed:
                return
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def send(self, event: Event) -> None:
        """Send an event, or let it wait while the peer is slow. Never waits itself."""
        if self._closed:
            return
        if self._waiting or not self._writable():
            self._wait(event)
        else:
            self._write(event)

    async def close(self) -> None:
        """End the channel. Safe to call twice."""
        self._shut()

    # --- what comes ---

    def _on_message(self, message: str | bytes) -> None:
        if self._closed:
            return
        try:
            if isinstance(message, bytes):
                raise ClientError("commands are text, got a binary message")
            command = self._wire.decode(message)
        except ClientError as error:
            self.send(error_event(error))
            return
        if len(self._commands) >= MAX_COMMANDS:
            # SCTP has no way to make this one channel wait, so the command is refused aloud.
            refusal = f"more than {MAX_COMMANDS} commands are waiting, this one was dropped"
            self.send(ErrorHappened("invalid_request_error", "too_many_commands", refusal, event_id=command.event_id))
            return
        self._commands.append(command)
        self._wake()

    def _shut(self) -> None:
        if self._closed:
            return
        self._end()
        try:
            self._channel.close()
        except AIORTC_ERRORS as error:
            logger.warning("closing a data channel failed: %s: %s", type(error).__name__, error)

    def _end(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- what goes ---

    def _writable(self) -> bool:
        return self._channel.readyState == "open" and self._channel.bufferedAmount <= HIGH_WATER_BYTES

    def _write(self, event: Event) -> None:
        for text in self._wire.encode(event):
            try:
                self._channel.send(text)
            except AIORTC_ERRORS as error:
                # The channel is closing, or the message is larger than the peer said it can take.
                logger.warning("a %s could not be sent: %s: %s", type(event).__name__, type(error).__name__, error)

    def _flush(self) -> None:
        n_written = 0
        while n_written < len(self._waiting) and self._writable():
            self._write(self._waiting[n_written])
            n_written += 1
        del self._waiting[:n_written]

    def _wait(self, event: Event) -> None:
        at = self._find(event)
        if at is None:
            self._waiting.append(event)
        else:
            earlier = self._waiting[at]
            if isinstance(event, TranscriptGrew | ReplyTextGrew) and isinstance(
                earlier, TranscriptGrew | ReplyTextGrew
            ):
                self._waiting[at] = replace(earlier, delta=earlier.delta + event.delta)
            else:
                del self._waiting[at]
                self._waiting.append(event)
        if len(self._waiting) > MAX_WAITING_EVENTS:
            logger.warning("a data channel is closed: its peer let %d events wait", len(self._waiting))
            self._shut()

    def _find(self, event: Event) -> int | None:
        """Return where an event waits that this one can be joined with, or that it makes old."""
        key = _key(event)
        if key is None:
            return None
        return next((at for at in reversed(range(len(self._waiting))) if _key(self._waiting[at]) == key), None)


def _key(event: Event) -> tuple[object, ...] | None:
    match event:
        case TranscriptGrew() | TranscriptGuessed():
            return type(event), event.item_id
        case ReplyTextGrew():
            return type(event), event.reply_id, event.item_id, event.output_index, event.modality
        case WordsSpoken():
            return type(event), event.reply_id, event.item_id
        case LevelsMeasured():
            return (type(event),)
        case _:
            return None
