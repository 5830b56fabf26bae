"""What the routes stand on: the parts of the house that live as long as the process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal, Protocol, TypeAlias

from aiohttp import web

from media_server.config import Config
from media_server.events import Channel
from media_server.metrics import Metrics
from media_server.session import session
from media_server.session.manager import SessionManager
from media_server.session.media import Media
from media_server.transport.webrtc.pacing import Pacing

VERSION = version("parley")


class Engines(session.Engines, Protocol):
    """The machines of a process: loaded once, shared by all calls."""

    async def run(self) -> None:
        """Keep the engines' processes alive until cancelled; then give everything back."""

    async def load(self) -> None:
        """Load and warm every engine.

        Raises:
            EngineError: one of them cannot be had; says what to install or set.
            ConfigError: one of them cannot use what it was given.
        """

    def states(self) -> dict[str, str]:
        """Return stage -> `warming`, `ready`, or `down: ` and why."""

    def lines(self) -> list[str]:
        """Return which engine serves each stage and why, one line each."""


class Peer(Media, Protocol):
    """A caller's connection: answers an offer, then is the `Media` of a call."""

    async def answer(self, offer_sdp: str) -> str:
        """Return the answer to an offer that was checked before."""


PeerMaker: TypeAlias = Callable[[Callable[[Channel], None]], Peer]
"""Makes a connection; is given whom to tell of the data channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The parts, put together.

    Attributes:
        body_limit_s: how long a body may take to arrive: 8 kB on a bad mobile network, twice.
        stopping: set once no more calls are taken, because the process ends.
    """

    config: Config
    engines: Engines
    metrics: Metrics
    pacing: Pacing
    manager: SessionManager
    make_peer: PeerMaker
    body_limit_s: float = 10.0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> Literal["ready", "warming", "down", "stopping"]:
        """Return whether calls can be taken: every engine must be ready."""
        if self.stopping.is_set():
            return "stopping"
        states = self.engines.states().values()
        if any(state.startswith("down") for state in states):
            return "down"
        return "ready" if all(state == "ready" for state in states) else "warming"


HOUSE = web.AppKey("house", House)
