"""What happens in a call, on its way to the one reader that may change the call's state.

Only words and happenings come through here, never sound. All are our own: a client's commands come one at a time, each
waiting for the one before it, so that a client can never fill the inbox. Full means a bug, and ends the call.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from media_server.conversation import Transcript
from media_server.dialogue.endpointing import Milestone
from media_server.events import Channel, Command, DigitPressed
from media_server.session.media import Connection
from media_server.session.utterance import Utterance

LIMIT = 256


@dataclass(frozen=True, slots=True)
class Passed:
    """The caller's speech passed a milestone; `arrived_s` is when the packet with its first sample came."""

    milestone: Milestone
    utterance: Utterance | None
    arrived_s: float


@dataclass(frozen=True, slots=True)
class Recognised:
    """The recogniser has (more of) an utterance's words."""

    utterance: Utterance
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class RecognitionFailed:
    """The recogniser failed on an utterance."""

    utterance: Utterance
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ReplyGrew:
    """A reply has written more; it holds what."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyHeardTo:
    """The caller has heard the first `n_chars` characters of a reply."""

    reply_id: str
    n_chars: int


@dataclass(frozen=True, slots=True)
class ReplySounded:
    """The first packet of a reply went out."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyMade:
    """All of a reply is written, and spoken into the playout."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """A reply's work has ended, in whatever way."""

    reply_id: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A client asks something; `done` is set when it has been dealt with."""

    channel: Channel
    command: Command
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """Somebody listens to events now."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """Somebody no longer listens."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Connected:
    """A media stands, and waits to be admitted."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A media has ended; `goodbye`: the caller meant it to."""

    connection: Connection
    reason: str
    goodbye: bool


@dataclass(frozen=True, slots=True)
class SilenceReached:
    """The first silent packet after a cut went out, at `at_s`."""

    at_s: float


@dataclass(frozen=True, slots=True)
class GreetingDue:
    """It is time for the agent to speak first."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time for levels, and for looking at limits."""


@dataclass(frozen=True, slots=True)
class HungUp:
    """The call is over."""

    reason: str


Happening: TypeAlias = (
    Passed
    | Recognised
    | RecognitionFailed
    | ReplyGrew
    | ReplyHeardTo
    | ReplySounded
    | ReplyMade
    | ReplyEnded
    | Asked
    | ChannelOpened
    | ChannelClosed
    | Connected
    | Disconnected
    | SilenceReached
    | DigitPressed
    | GreetingDue
    | Ticked
    | HungUp
)


class Inbox:
    """A bounded queue with one reader."""

    def __init__(self) -> None:
        self._happenings: deque[Happening] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Take nothing more, and forget what is there: nobody will read it."""
        self._closed = True
        self._happenings.clear()

    def post(self, happening: Happening) -> None:
        """Add a happening. Never waits.

        Raises:
            OverflowError: the reader has stopped reading: a bug of ours.
        """
        if self._closed:
            return
        if len(self._happenings) >= LIMIT:
            raise OverflowError(f"the inbox holds {LIMIT} happenings, the first is {self._happenings[0]!r:.80}")
        self._happenings.append(happening)
        self._arrived.set()

    async def get(self) -> Happening:
        """Return the next happening, waiting for one. Cancellation loses nothing."""
        while not self._happenings:
            self._arrived.clear()
            await self._arrived.wait()
        return self._happenings.popleft()
