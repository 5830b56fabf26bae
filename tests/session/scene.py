"""A stage for a whole call in virtual time: scripted engines, a caller who speaks on cue, and a channel that keeps all.

The caller's speech is a loud constant (the scripted VAD hears loudness), 20 ms a packet, as RTP brings it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from media_server.audio.chunk import HEARING_HZ, SPEAKING_HZ, AudioChunk, silence
from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.config import Config, load_config
from media_server.conversation import SpokenMessage
from media_server.engines.protocols import Asr, Llm, Tts
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad
from media_server.errors import PeerGoneError
from media_server.events import Command, DigitPressed, Event, Settings
from media_server.metrics import Metrics
from media_server.session.session import Session

Wanted = TypeVar("Wanted")

PACKET_S = 0.02


@dataclass
class ScriptedEngines:
    """What the call works with."""

    vad: ScriptedVad
    asr: Asr
    llm: Llm
    tts: Tts
    greeting: str = ""


class Stage:
    """The caller's side of the wire, both sound and events.

    Attributes:
        events: all events, with the virtual time at which each came.
        heard: loudness of each packet that the caller heard (the highest sample), with its time.
        heard_s: when the call last heard of the caller.
        present: cleared by a test that has the caller connect, or be heard, later.
        closed: set once the call has closed the connection.
    """

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self.heard: list[tuple[float, int]] = []
        self.speaking = False
        self.rtt_ms: float | None = 40.0
        self.on_digit: Callable[[DigitPressed], None] = lambda _: None
        self._commands: asyncio.Queue[Command | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        self._lost = False
        self.heard_s = 0.0
        self.present = asyncio.Event()
        self.present.set()
        self.closed = asyncio.Event()
        self._pts = 0

    # --- Media ---

    async def connect(self) -> None:
        """Wait until the caller is there; one who has left never comes."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self.present, self._gone)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if not self.present.is_set():
            raise PeerGoneError("the caller did not connect")

    async def run(self, sound_in: LiveQueue, playout: Playout) -> None:
        """Carry a packet each way every 20 ms until the caller is gone; while not present, they hear nothing."""
        loop = asyncio.get_running_loop()
        self._sound_in = sound_in
        while not self._gone.is_set():
            out = playout.read(SPEAKING_HZ // 50)
            if self.present.is_set():
                self.heard_s = loop.time()
                self.put_packet()
                self.heard.append((loop.time(), int(out.max())))
            self._changed.set()
            await asyncio.sleep(PACKET_S)
        if self._lost:
            raise PeerGoneError("the network changed")

    # --- Channel ---

    async def commands(self) -> AsyncGenerator[Command, None]:
        """Yield what the test asks."""
        while (command := await self._commands.get()) is not None:
            yield command

    def send(self, event: Event) -> None:
        """Keep an event."""
        self.events.append((asyncio.get_running_loop().time(), event))
        self._changed.set()

    async def close(self) -> None:
        """Stop asking."""
        self.closed.set()
        self._commands.put_nowait(None)

    # --- the test's side ---

    def ask(self, command: Command) -> None:
        """Ask something of the call."""
        self._commands.put_nowait(command)

    def put_packet(self) -> None:
        """Have the call hear the next 20 ms at once."""
        pcm = np.full(320, 8000, dtype=np.int16) if self.speaking else silence(320)
        self._sound_in.put(AudioChunk(pcm, HEARING_HZ, self._pts), asyncio.get_running_loop().time())
        self._pts += 320

    def leave(self) -> None:
        """Say goodbye."""
        self._gone.set()

    def lose(self) -> None:
        """Be gone without a word."""
        self._lost = True
        self._gone.set()

    async def say(self, seconds: float) -> None:
        """Speak for so long, and fall silent."""
        self.speaking = True
        await asyncio.sleep(seconds)
        self.speaking = False

    async def wait(self, kind: type[Wanted], which: int = 1) -> Wanted:
        """Return the `which`-th event of a kind, waiting for it for at most a minute."""
        async with asyncio.timeout(60):
            while len(found := self.all(kind)) < which:
                self._changed.clear()
                await self._changed.wait()
        return found[which - 1]

    async def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so, for at most a minute."""
        async with asyncio.timeout(60):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def all(self, kind: type[Wanted]) -> list[Wanted]:
        """Return all events of a kind so far."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def time_of(self, event: object) -> float:
        """Return when an event came."""
        return next(at_s for at_s, each in self.events if each is event)

    def names(self, *leave_out: type) -> list[str]:
        """Return the names of all events so far, in order, without those of the given kinds."""
        return [type(event).__name__ for _, event in self.events if not isinstance(event, leave_out)]


@dataclass
class Scene:
    """A call under way."""

    session: Session
    stage: Stage
    over: Awaitable[str]
    metrics: Metrics = field(default_factory=Metrics)

    def texts(self) -> list[tuple[str, str]]:
        """Return who said what, as both sides may remember it."""
        return [(item.role, item.text) for item in self.session.conversation if isinstance(item, SpokenMessage)]


def scripted(
    *, asr: Asr | None = None, llm: Llm | None = None, tts: Tts | None = None, greeting: str = ""
) -> ScriptedEngines:
    """Return engines that say as little as possible where the test gives none."""
    return ScriptedEngines(
        vad=ScriptedVad(),
        asr=asr or ScriptedAsr(["hello there"]),
        llm=llm or ScriptedLlm([["Good morning to you."]]),
        tts=tts or ScriptedTts(),
        greeting=greeting,
    )


def configured(**knobs: str) -> Config:
    """Return the shipped configuration with some knobs turned: `turn__silence_ms="300"`."""
    environ: Mapping[str, str] = {f"PARLEY_{name.upper()}": value for name, value in knobs.items()}
    return load_config(environ).config


@asynccontextmanager
async def calling(
    engines: ScriptedEngines, *, config: Config | None = None, settings: Settings | None = None
) -> AsyncGenerator[Scene, None]:
    """Hold a call for the length of the block; then hang up and see that no task is left."""
    metrics = Metrics()
    stage = Stage()
    session = Session(engines=engines, config=config or configured(), settings=settings or Settings(), metrics=metrics)
    session.attach_media(stage)
    session.attach_channel(stage)
    before = asyncio.all_tasks()
    task = asyncio.create_task(session.run())
    try:
        yield Scene(session, stage, task, metrics)
    finally:
        if not task.done():
            session.hang_up("the test is over")
        async with asyncio.timeout(30):
            await task
        left = asyncio.all_tasks() - before
        assert not left, left
