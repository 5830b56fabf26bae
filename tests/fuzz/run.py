"""Puts mutated packets into calls, and finds what should not have happened.

A packet is told by its kind and number: with the seed they are all that its mutation depends on.
"""

import asyncio
import contextlib
import gc
import logging
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from media_server.errors import ClientError
from media_server.metrics import Metrics
from media_server.protocol.realtime import RealtimeWire
from media_server.transport.webrtc.offer import check_offer
from media_server.transport.webrtc.peer import WebRtcPeer
from tests.fuzz.mutation import mutate, mutate_json, mutate_sdp
from tests.fuzz.templates import MESSAGES, OFFERS, PACKETS
from tests.fuzz.victim import CallBrokenError, Victim
from tests.transport.webrtc.far_end import CONFIG, OnePacing

SHARES = {
    "datagram": 0.20,
    "stun": 0.14,
    "rtp": 0.20,
    "srtp": 0.06,
    "rtcp": 0.14,
    "sctp": 0.14,
    "message": 0.09,
    "sdp": 0.025,
    "knock": 0.005,
}
"""How many packets of each kind there are among all."""

MAY_END_THE_CALL = ("sctp",)
"""Behind DTLS the far end may end its call or its channel at any time: ABORT, SHUTDOWN, a reset of the stream."""

ANSWERED_EVERY = 20
"""Of the offers that pass the gate, one in so many is answered."""

HELD_S = 0.25
"""Of processor time for one packet. A packet takes some 50 us: this one never ends, or grows with what it claims."""

SEEDS = Path(__file__).parent / "seeds"
_BATCH = 250
_BATCHES_A_CALL = 20
_KNOCKS_A_CALL = 100
_WARM_UP_SHARE = 0.05
_GROWTH_MB = 16.0
_CONNECT_CPU_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What should not have happened: after which packet, where in the code, and the traceback."""

    kind: str
    number: int
    data: bytes
    place: str
    text: str


@dataclass(slots=True)
class Tally:
    """Of one kind of packets."""

    packets: int = 0
    taken: int = 0
    replaced: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds between two calls."""

    tasks: int
    descriptors: int
    threads: int
    memory_mb: float

    @classmethod
    def now(cls) -> "Footprint":
        """Return it."""
        gc.collect()
        process = psutil.Process()
        memory_mb = process.memory_info().rss / 1e6
        return cls(len(asyncio.all_tasks()), process.num_fds(), process.num_threads(), memory_mb)

    def leaks(self, later: "Footprint") -> list[str]:
        """Return what is more than it was."""
        more = [
            f"{name}: {getattr(self, name)} -> {getattr(later, name)}"
            for name in ("tasks", "descriptors", "threads")
            if getattr(later, name) > getattr(self, name)
        ]
        if later.memory_mb > self.memory_mb + _GROWTH_MB:
            more.append(f"memory: {self.memory_mb:.1f} -> {later.memory_mb:.1f} MB")
        return more


class HeldError(Exception):
    """One packet held the event loop."""


@dataclass
class Watch:
    """Hears of every exception that nobody expects: in the log, in the loop's handler, and of a loop that is held."""

    heard: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Listen."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._take_context)
        handler = logging.Handler()
        handler.emit = self._take_record  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        before = signal.signal(signal.SIGVTALRM, _held)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            logging.getLogger().removeHandler(handler)
            loop.set_exception_handler(None)

    def take(self) -> list[str]:
        """Return what was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard

    def _take_context(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        shown = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
        self.heard.append(f"{shown}the loop was told: {context.get('message')}")

    def _take_record(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        if "Traceback" in text or record.levelno >= logging.ERROR:
            self.heard.append(text)


def _held(_: int, frame: FrameType | None) -> None:
    raise HeldError(f"for more than {HELD_S:g} s")


@dataclass
class Fuzz:
    """A run.

    Attributes:
        findings: the first of each place.
        again: how often a place was found after the first time.
        tallies: by kind.
    """

    seed: int
    findings: dict[str, Finding] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=lambda: {kind: Tally() for kind in SHARES})

    def __post_init__(self) -> None:
        """Make what the packets of a run go through."""
        self._watch = Watch()
        self._wire = RealtimeWire()

    async def run(self, n_packets: int) -> list[str]:
        """Put in so many packets of all kinds, by turns; return what the process holds more than at the beginning."""
        # One thread for names that are looked up, from the beginning on: a second one later is no leak.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with self._watch.on():
            done = dict.fromkeys(SHARES, 0)
            wanted = {kind: round(n_packets * share) for kind, share in SHARES.items()}
            await self._rounds(done, {kind: round(n * _WARM_UP_SHARE) for kind, n in wanted.items()})
            before = Footprint.now()
            await self._rounds(done, wanted)
            after = Footprint.now()
            self._note("all", 0, b"")
        return before.leaks(after)

    async def replay(self, packets: Sequence[tuple[str, bytes]]) -> None:
        """Put in packets, each told by its kind; a call that one of them ends is followed by a new one."""
        with self._watch.on():
            left = list(enumerate(packets))
            while left:
                async with Victim() as victim:
                    survived = True
                    while left and survived:
                        number, (kind, data) = left.pop(0)
                        if kind == "knock":
                            await self._knock([data], number, signed=False)
                            await self._knock([data], number, signed=True)
                            continue
                        survived = await self._put(victim, kind, number, data)
                        survived = survived and await self._survives(victim, kind, number, data)
                gc.collect()
                await asyncio.sleep(0)
                self._note(kind, number, data)

    def packet(self, kind: str, number: int) -> bytes:
        """Return a packet; what depends on the call is not in it yet."""
        rng = random.Random(f"{self.seed}/{kind}/{number}")
        if kind == "sdp":
            return mutate_sdp(OFFERS, rng).encode("utf-8", "surrogatepass")
        if kind == "message":
            return mutate_json(MESSAGES, rng).encode("utf-8", "surrogatepass")
        return mutate(PACKETS["datagram" if kind == "knock" else kind], rng)

    # --- inside ---

    async def _rounds(self, done: dict[str, int], wanted: dict[str, int]) -> None:
        while done["knock"] < wanted["knock"]:
            numbers = range(done["knock"], min(wanted["knock"], done["knock"] + _KNOCKS_A_CALL))
            packets = [self.packet("knock", number) for number in numbers]
            await self._knock(packets, numbers[0], signed=numbers[0] // _KNOCKS_A_CALL % 2 == 1)
            done["knock"] = numbers[-1] + 1
        while any(done[kind] < wanted[kind] for kind in wanted):
            async with contextlib.AsyncExitStack() as stack:
                victim = await stack.enter_async_context(Victim())
                for _ in range(_BATCHES_A_CALL):
                    kind = min(
                        (kind for kind in wanted if kind != "knock"), key=lambda kind: done[kind] / max(1, wanted[kind])
                    )
                    until = min(wanted[kind], done[kind] + _BATCH)
                    if not await self._batch(victim, kind, done, until):
                        self.tallies[kind].replaced += 1
                        break
            await asyncio.sleep(0)

    async def _batch(self, victim: Victim, kind: str, done: dict[str, int], until: int) -> bool:
        """Put in packets of one kind; return whether the call can go on."""
        tally = self.tallies[kind]
        begin_s = time.perf_counter()
        data, survived = b"", True
        while done[kind] < until and survived:
            data = self.packet(kind, done[kind])
            survived = await self._put(victim, kind, done[kind], data)
            done[kind] += 1
            if kind in MAY_END_THE_CALL and not victim.talking:
                break
        survived = survived and await self._survives(victim, kind, done[kind] - 1, data)
        tally.seconds += time.perf_counter() - begin_s
        return survived

    async def _knock(self, packets: list[bytes], first: int, *, signed: bool) -> None:
        """Put packets into a call that is connecting."""
        tally = self.tallies["knock"]
        begin_s = time.perf_counter()
        victim = Victim(packets, signed=signed)
        signal.setitimer(signal.ITIMER_VIRTUAL, _CONNECT_CPU_S)
        try:
            async with victim:
                tally.taken += len(packets)
        except TimeoutError:
            tally.replaced += 1
        except Exception:
            self._watch.heard.append(traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        tally.packets += len(packets)
        tally.seconds += time.perf_counter() - begin_s
        at = max(0, victim.knocked - 1)
        self._note("knock", first + at, packets[at])

    async def _put(self, victim: Victim, kind: str, number: int, data: bytes) -> bool:
        """Put in one packet; return False if it is a finding."""
        tally = self.tallies[kind]
        tally.packets += 1
        begin_s = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, HELD_S)
        try:
            if kind == "sdp":
                tally.taken += await self._offer(data.decode("utf-8", "surrogatepass"), number)
            else:
                tally.taken += await victim.put(kind, data)
        except Exception:
            # Whatever it is: it would have reached the loop.
            self._watch.heard.append(traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        tally.slowest_ms = max(tally.slowest_ms, (time.process_time() - begin_s) * 1000)
        return self._note(kind, number, data)

    async def _survives(self, victim: Victim, kind: str, number: int, data: bytes) -> bool:
        try:
            await victim.check()
        except CallBrokenError:
            if kind not in MAY_END_THE_CALL:
                self._watch.heard.append(traceback.format_exc())
            self._note(kind, number, data)
            return False
        except Exception:
            self._watch.heard.append(traceback.format_exc())
        return self._note(kind, number, data)

    async def _offer(self, sdp: str, number: int) -> bool:
        try:
            checked = check_offer(sdp)
        except ClientError:
            return False
        if number % ANSWERED_EVERY == 0:
            peer = WebRtcPeer(
                CONFIG,
                bind_host="127.0.0.1",
                wire=RealtimeWire,
                on_channel=lambda _: None,
                pacing=OnePacing(Metrics()),
                metrics=Metrics(),
            )
            try:
                # Nothing may be raised: what passes the gate can be answered.
                await peer.answer(checked)
            finally:
                await peer.close()
        return True

    def _note(self, kind: str, number: int, data: bytes) -> bool:
        """Keep what was heard since the last time; return whether there was nothing."""
        heard = self._watch.take()
        for text in heard:
            place = _place(text)
            if place in self.findings:
                self.again[place] = self.again.get(place, 0) + 1
            else:
                self.findings[place] = Finding(kind, number, data, place, text)
        return not heard


def _place(text: str) -> str:
    """Return what tells one finding from another: the error, and the innermost line of the traceback."""
    lines = [line.strip() for line in text.splitlines()]
    frames = [line for line in lines if line.startswith("File ") and not line.endswith("in _held")]
    last = frames[-1].rpartition("/")[2].replace('"', "") if frames else ""
    error = next((line for line in reversed(lines) if line and not line.startswith("the loop")), "")
    name = error.partition(":")[0].rpartition(".")[2]
    # Where a loop stood that never ends is a matter of chance: the function tells enough.
    return f"{name} ({last.rpartition(' ')[2] if name.endswith('HeldError') else last})"


def keep(finding: Finding) -> Path:
    """Write the packet of a finding to the seeds, unless it stands there; return the file."""
    path = SEEDS / f"{finding.kind}.txt"
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    packet = finding.data.hex() or "-"
    if packet not in known.split():
        path.write_text(f"{known}# {finding.place}\n{packet}\n", encoding="utf-8")
    return path


def kept() -> list[tuple[str, bytes]]:
    """Return the kind and the packet of every seed that was kept."""
    return [
        (path.stem, b"" if line == "-" else bytes.fromhex(line))
        for path in sorted(SEEDS.glob("*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]


def show(fuzz: Fuzz, leaks: list[str]) -> None:
    """Print the table, the findings and the leaks."""
    lines = [f"{'kind':<10}{'packets':>10}{'taken':>10}{'refused':>10}{'replaced':>10}{'a second':>10}{'slowest':>10}"]
    for kind, tally in fuzz.tallies.items():
        speed = tally.packets / tally.seconds if tally.seconds else 0.0
        numbers = (tally.packets, tally.taken, tally.packets - tally.taken, tally.replaced, round(speed))
        lines.append(f"{kind:<10}" + "".join(f"{n:>10}" for n in numbers) + f"{tally.slowest_ms:>7.0f} ms")
    for place, finding in fuzz.findings.items():
        lines += [
            "",
            f"FOUND {finding.kind}:{finding.number} --seed {fuzz.seed}, and {fuzz.again.get(place, 0)} times more",
        ]
        lines += [f"packet {finding.data.hex()[:4_000]}", finding.text.rstrip()]
    lines += [f"LEAK {leak}" for leak in leaks]
    sys.stdout.write("\n".join(lines) + "\n")
