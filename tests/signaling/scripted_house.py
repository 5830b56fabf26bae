"""A house for tests: the real manager and sessions, scripted engines, and peers that need no network."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.config import Config, load_config
from media_server.engines.protocols import Asr, Finished, Llm, TextDelta, Tts, Vad
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad
from media_server.errors import EngineError, PeerGoneError
from media_server.events import Channel
from signaling.app import build_app, build_house
from signaling.house import House

Client = TestClient[Request, Application]


class ScriptedEngines:
    """Engines that are ready as soon as somebody says so."""

    greeting = ""

    def __init__(self, *, state: str = "ready", failure: EngineError | None = None) -> None:
        """Begin in `state`; `failure`: what loading ends with."""
        self.vad: Vad = ScriptedVad()
        self.asr: Asr = ScriptedAsr(["hello"])
        self.llm: Llm = ScriptedLlm([[TextDelta("hello"), Finished("stop")]])
        self.tts: Tts = ScriptedTts()
        self.loading = asyncio.Event()
        self.closed = False
        self.tasks_at_the_end: set[str] = set()
        self._state = state
        self._failure = failure

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.closed = True
            self.tasks_at_the_end = {task.get_name() for task in asyncio.all_tasks()}

    async def load(self) -> None:
        """Wait until loading is let go on; then become ready, or fail as scripted."""
        await self.loading.wait()
        if self._failure is not None:
            raise self._failure
        self._state = "ready"

    def states(self) -> dict[str, str]:
        """Return one state for all."""
        return dict.fromkeys(("vad", "asr", "llm", "tts"), self._state)

    def lines(self) -> list[str]:
        """Return one line."""
        return ["asr: scripted - a test"]


class FakePeer:
    """A connection that answers what it is told to answer, and lives until it is closed."""

    rtt_ms: float | None = None
    heard_s = 0.0

    def __init__(self, answers: str | Exception = "v=0\r\n", *, restarts: str | None = None) -> None:
        """Answer an offer with `answers`, and one that restarts the connection with `restarts`."""
        self.offers: list[str] = []
        self.restarts = restarts
        self.running = asyncio.Event()
        self.closed = asyncio.Event()
        self._answers = answers

    async def answer(self, offer_sdp: str) -> str:
        """Return the answer, or raise it."""
        self.offers.append(offer_sdp)
        if isinstance(self._answers, Exception):
            raise self._answers
        return self._answers

    async def restart(self, offer_sdp: str) -> str | None:
        """Answer an offer for the same connection."""
        if self.restarts is not None:
            self.offers.append(offer_sdp)
        return self.restarts

    async def connect(self) -> None:
        """Be there."""

    async def run(self, sound_in: LiveQueue, playout: Playout) -> None:
        """Live until closed."""
        self.running.set()
        try:
            await self.closed.wait()
        finally:
            await self.close()
        raise PeerGoneError("the peer closed the connection")

    async def close(self) -> None:
        """End."""
        self.closed.set()


def make_config(flags: Mapping[str, str | int] | None = None) -> Config:
    """Return the shipped configuration with a free port, and `flags` on top. The environment of the test is unheard."""
    return load_config({}, flags={"server.port": 0, **(flags or {})}).config


@asynccontextmanager
async def front_door(
    engines: ScriptedEngines | None = None,
    peer: Callable[[], FakePeer] | None = None,
    flags: Mapping[str, str | int] | None = None,
    body_limit_s: float = 10.0,
) -> AsyncGenerator[tuple[Client, House], None]:
    """Open a front door on loopback; `peer` makes the connections, otherwise they are real."""
    house = replace(build_house(make_config(flags), engines or ScriptedEngines()), body_limit_s=body_limit_s)
    if peer is not None:

        def make_peer(_: Callable[[Channel], None]) -> FakePeer:
            return peer()

        house = replace(house, make_peer=make_peer)
    calls = asyncio.create_task(house.manager.run())
    async with TestClient(TestServer(build_app(house))) as client:
        try:
            yield client, house
        finally:
            calls.cancel()
            await asyncio.wait([calls])
