"""A load on one server, measured: what it costs the server, and what comes back to the callers."""

import asyncio
import contextlib
import gc
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import FRAME_MS, FRAME_SAMPLES, SPEAKING_HZ, Pcm, silence
from media_server.audio.jitter import RtpSound
from media_server.audio.opus import CLOCK_HZ, OpusDecoder, OpusEncoder, OpusError
from media_server.audio.wrapping import SEQUENCES, TIMESTAMPS
from media_server.caller.chirp import CHIRP_S, EVERY_S, Stretch, chirps, find_delays_ms
from media_server.caller.network import Conditions
from media_server.caller.report import percentiles
from media_server.caller.server_processes import ServerProcesses, listening_on
from media_server.caller.swarm import SwarmCaller
from media_server.errors import ParleyError, PeerGoneError
from media_server.metrics import Metrics
from media_server.transport.webrtc.pacing import Pacing

SETTLE_S = 2.0
"""From the last call's first packet to the beginning of the measurement."""

LATE_MS = 20.0

SILENT_S = 3.0
"""A server that sent all the time, and at the end nothing for so long, has left the call without a word."""

_STEADY = 0.9
"""So much of the time up to its last packet has a server filled that sends all the time."""

_UNDER_WAY_S = 1.0
"""What came so shortly before the end need not have been the last: more may be under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """In milliseconds; None: nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What came of a load.

    Attributes:
        calls: that were up and measured; the one that says chirps included.
        failures: calls that never came up or were lost, and why; and the processes of the server that ended.
        server_cpu_ms_per_call_second: of all processes of the server; None: they are not on this machine, or one ended.
        rss_mb_per_call: what the server's memory grew by; None as above.
        server_threads: at the end.
        late_over_20ms_share: packets that came more than 20 ms after their place behind the call's fastest one.
        lost_share: packets of the server that did not come, by their sequence numbers.
        chirps: that were said within the time, by one of the callers.
        chirps_heard: how many of them came back within a second.
        mouth_to_ear_ms: of those, from the way out of the caller to the way in; None where the server is no echo.
            The delay of `conditions` is in it twice. There is a chirp a second: what takes longer than that seems a
            second sooner.
        setup_ms: from the offer to the first packet.
        caller_cpu_ms_per_call_second: what this process took.
        conditions: of the made-up network, on each of its two ways.
    """

    url: str
    calls: int
    seconds: float
    failures: list[str]
    server_cpu_ms_per_call_second: float | None
    rss_mb_per_call: float | None
    server_threads: int | None
    late_over_20ms_share: float | None
    lost_share: float | None
    packets: int
    chirps: int
    chirps_heard: int
    mouth_to_ear_ms: Percentiles
    setup_ms: Percentiles
    caller_cpu_ms_per_call_second: float
    conditions: Conditions


class Load:
    """A load on one server."""

    def __init__(
        self, url: str, calls: int, speech: Pcm, conditions: Conditions, *, rate: float, pids: Sequence[int] | None
    ) -> None:
        """Prepare it.

        Args:
            url: see `SwarmCaller`.
            calls: how many at the same time.
            speech: what they say, again and again: int16, shape (n,), 24 kHz.
            conditions: of each way of the network.
            rate: new calls a second; 0: all at once.
            pids: of the server; None: whoever listens on the port.
        """
        self._url = url
        self._calls = calls
        self._payloads = encode(speech, conditions.loss)
        self._chirps = encode(chirps(10, SPEAKING_HZ), conditions.loss)
        self._conditions = conditions
        self._rate = rate
        self._pids = pids
        self._failures: list[str] = []
        self._up: set[SwarmCaller] = set()
        self.measuring = asyncio.Event()
        """Set when the calls are up, and what they cost is measured."""
        self._settled = asyncio.Event()
        self._deserted = asyncio.Event()

    async def run(self, seconds: float) -> LoadReport:
        """Load the server for so long, and hang up.

        Raises:
            PeerGoneError: no call came up.
        """
        server = ServerProcesses(self._pids if self._pids is not None else listening_on(self._url))
        pacing = Pacing(Metrics())
        mouth = Mouth()
        callers = [self._caller(n, pacing, mouth) for n in range(self._calls)]
        memory_before = server.memory_mb()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, asyncio.TaskGroup() as tasks:
            timer = tasks.create_task(pacing.run(), name="pacing")
            calling = [
                tasks.create_task(self._call(caller, n, http), name=f"call {n}") for n, caller in enumerate(callers)
            ]
            await self._settled.wait()
            await asyncio.sleep(SETTLE_S if self._up else 0)
            gc.freeze()
            begin_s = asyncio.get_running_loop().time()
            processes = server.all()
            self.measuring.set()
            cpu_before_s, own_before_s = server.cpu_s(), _own_cpu_s()
            await self._measure(seconds if self._up else 0)
            cpu_s, own_s = server.cpu_s(), _own_cpu_s()
            ended = processes - server.all()
            memory_mb, threads = server.memory_mb(), server.threads()
            end_s = asyncio.get_running_loop().time()
            came = [Came(caller, begin_s, end_s) for caller in callers if caller in self._up]
            silent = [each for each in came if each.left_s > SILENT_S]
            failures = [*self._failures, *(f"{self._url}: nothing came any more" for _ in silent)]
            for task in (*calling, timer):
                task.cancel()
        counted = [each for each in came if each not in silent]
        if not counted:
            came_up = any(caller.setup_ms is not None for caller in callers)
            why = "no call is left" if came_up else "no call came up"
            raise PeerGoneError(f"{why}: {failures[-1]}")
        if ended:
            cpu_s = memory_mb = None
            failures.append(f"{self._url}: {len(ended)} processes of the server ended while it was measured")
        n_up = len(counted)
        delays_ms = mouth.delays_ms(begin_s, end_s)
        packets = sum(each.n for each in counted)
        expected = sum(each.expected for each in counted)
        return LoadReport(
            url=self._url,
            calls=n_up,
            seconds=seconds,
            failures=failures,
            server_cpu_ms_per_call_second=_per(_less(cpu_s, cpu_before_s), n_up * seconds / 1000),
            rss_mb_per_call=_per(_less(memory_mb, memory_before), n_up),
            server_threads=threads,
            late_over_20ms_share=_per(float(sum(each.n_late for each in counted)), packets),
            lost_share=_per(float(max(0, expected - packets)), expected),
            packets=packets,
            chirps=len(mouth.due(begin_s, end_s)),
            chirps_heard=len(delays_ms),
            mouth_to_ear_ms=_percentiles(delays_ms),
            setup_ms=_percentiles([caller.setup_ms for caller in callers if caller.setup_ms is not None]),
            caller_cpu_ms_per_call_second=(own_s - own_before_s) * 1000 / (n_up * seconds),
            conditions=self._conditions,
        )

    async def _measure(self, seconds: float) -> None:
        """Wait so long, or until no call is left."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._deserted.wait(), seconds)

    def _caller(self, n: int, pacing: Pacing, mouth: "Mouth") -> SwarmCaller:
        probes = n == self._calls // 2  # neither the first nor the last that is served
        return SwarmCaller(
            self._url,
            self._chirps if probes else self._payloads,
            pacing,
            # Spread evenly, whatever the number of calls: they do not all speak at once.
            begin=0 if probes else round(len(self._payloads) * (n * 0.618 % 1)),
            conditions=self._conditions,
            stream=n,
            on_sent=mouth.said if probes else None,
            on_packet=mouth.heard if probes else None,
        )

    async def _call(self, caller: SwarmCaller, n: int, http: aiohttp.ClientSession) -> None:
        await asyncio.sleep(n / self._rate if self._rate else 0)
        try:
            await caller.call(http, lambda: self._note(caller))
        except ParleyError as error:
            self._failures.append(str(error))
            self._up.discard(caller)
            self._settle()
            if self._settled.is_set() and not self._up:
                self._deserted.set()

    def _note(self, caller: SwarmCaller) -> None:
        self._up.add(caller)
        self._settle()

    def _settle(self) -> None:
        """Go on once every call is up, or has failed."""
        if len(self._up) + len(self._failures) >= self._calls:
            self._settled.set()


class Mouth:
    """The caller that says chirps and hears them again."""

    def __init__(self) -> None:
        self._every = round(EVERY_S * 1000 / FRAME_MS)
        self._said_s: list[float] = []
        self._heard: list[tuple[float, RtpSound]] = []

    def said(self, number: int, at_s: float) -> None:
        """Take that a packet went out."""
        if number % self._every == 0:
            self._said_s.append(at_s)

    def heard(self, packet: RtpSound, at_s: float) -> None:
        """Take a packet that came back."""
        self._heard.append((at_s, packet))

    def due(self, begin_s: float, end_s: float) -> list[float]:
        """Return when the chirps were said in that time that had a second to come back."""
        return [said_s for said_s in self._said_s if begin_s <= said_s < end_s - EVERY_S]

    def delays_ms(self, begin_s: float, end_s: float) -> list[float]:
        """Return the delays of the chirps that are due in that time and came back.

        Jitter within a chirp would hide it: the packets are put in their places behind the fastest one near it, by
        their timestamps, and a chirp is as late as the packet in which it begins.
        """
        decoded = self._decoded()
        delays_ms = []
        for said_s in self.due(begin_s, end_s):
            near = [each for each in decoded if said_s <= each.at_s < said_s + EVERY_S + CHIRP_S]
            fastest_s = min((each.transit_s for each in near), default=0.0)
            # A stream that begins anew has other timestamps: then one side of the seam is left out.
            near = [each for each in near if each.transit_s < fastest_s + EVERY_S]
            places = [Stretch(each.at_s - each.transit_s + fastest_s, each.pcm) for each in near]
            for delay_ms in find_delays_ms([said_s], places):
                begins_in = bisect_right(places, said_s + delay_ms / 1000, key=lambda place: place.at_s) - 1
                delays_ms.append(delay_ms + (near[begins_in].transit_s - fastest_s) * 1000)
        return delays_ms

    def _decoded(self) -> list["_Decoded"]:
        """Return what was heard, in the order in which it was sent."""
        timestamps = np.unwrap([packet.timestamp for _, packet in self._heard], period=TIMESTAMPS)
        decoder = OpusDecoder()
        decoded = []
        for n in np.argsort(timestamps, kind="stable"):
            at_s, packet = self._heard[n]
            with contextlib.suppress(OpusError):
                decoded.append(_Decoded(at_s, at_s - float(timestamps[n]) / CLOCK_HZ, decoder.decode(packet.payload)))
        return decoded


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A packet: when it came, how long after its timestamp (of which only differences mean something), its sound."""

    at_s: float
    transit_s: float
    pcm: Pcm


class Came:
    """What came back to one caller within a time.

    Attributes:
        n: packets.
        expected: how many there should be: by their numbers, and up to the end if the server sent all the time before.
        n_late: more than 20 ms behind their place.
        left_s: how long before the end a server that sent all the time sent its last one; 0: it does not.
    """

    def __init__(self, caller: SwarmCaller, begin_s: float, end_s: float) -> None:
        at_s = np.asarray(caller.arrivals_s)
        sequence = np.unwrap(np.asarray(caller.sequence), period=SEQUENCES)
        self.left_s = _left_s(at_s, sequence, end_s)
        within = (at_s >= begin_s) & (at_s < end_s)
        at_s, sequence = at_s[within], sequence[within]
        timestamps = np.unwrap(np.asarray(caller.timestamps)[within], period=TIMESTAMPS)
        self.n = len(at_s)
        self.expected = int(sequence.max() - sequence.min()) + 1 if self.n else 0
        transit_ms = (at_s - timestamps / CLOCK_HZ) * 1000 if self.n else np.zeros(0)
        self.n_late = int((transit_ms - transit_ms.min() > LATE_MS).sum()) if self.n else 0
        if self.left_s > _UNDER_WAY_S:
            self.expected += round(min(self.left_s, end_s - begin_s) * 1000 / FRAME_MS)


def _left_s(at_s: NDArray[np.float64], sequence: NDArray[np.int64], end_s: float) -> float:
    """Return how long before the end a server that sent all the time sent its last packet; 0: it does not."""
    if not len(at_s):
        return 0.0
    filled_s = float(sequence.max() - sequence.min()) * FRAME_MS / 1000
    return float(end_s - at_s[-1]) if filled_s > _STEADY * (at_s[-1] - at_s[0]) else 0.0


def hum_with_pauses() -> Pcm:
    """Return ten seconds of which four sound like speech to a codec: int16, shape (n,), 24 kHz."""
    at_s = np.arange(4 * SPEAKING_HZ) / SPEAKING_HZ
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * at_s)) / SPEAKING_HZ
    harmonics = sum(np.sin(n * pitch) / n for n in range(1, 25))
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * at_s)
    breath = np.random.default_rng(1).normal(0, 0.1, len(at_s))
    speech: Pcm = (5_000 * syllables * (harmonics + breath)).astype(np.int16)
    return np.concatenate([speech, silence(6 * SPEAKING_HZ)])


def encode(pcm: Pcm, loss: float) -> list[bytes]:
    """Return the packets of some sound: int16, shape (n,), 24 kHz; with copies if some get lost, as browsers do.

    Without loss our packets are CELT; those of browsers are SILK, and cost the server 3 us more each.
    """
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=5, expected_loss_percent=min(30, round(loss * 100)))
    pcm = np.concatenate([pcm, silence(-len(pcm) % FRAME_SAMPLES)])
    whole = len(pcm) // FRAME_SAMPLES
    return [encoder.encode(pcm[n * FRAME_SAMPLES : (n + 1) * FRAME_SAMPLES]) for n in range(whole)]


def _percentiles(values: Sequence[float]) -> Percentiles:
    return Percentiles(**percentiles(values)) if values else Percentiles(p50=None, p95=None, p99=None)


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _per(amount: float | None, of: float) -> float | None:
    return None if amount is None or not of else amount / of


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system
