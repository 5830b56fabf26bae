"""Does a server hold more after half an hour than after a minute, when callers come and go all the time?

Every place is one caller after the other: each speaks an order over a bad network, hears the greeting and the reply,
hangs up after 9.5 seconds, and half a second later the next one calls. So the agent's engines work, and all that a
call needs is made and unmade some five times a second. The places keep their distance from each other, so that as
many callers speak at a time in the last minute as in the first.

    python -m tests.bench.soak --minutes 1 --calls 10

The last minute is compared with the first one after the warm-up, and the empty server after all of it with the empty
server before.
"""

import argparse
import asyncio
import contextlib
import logging
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import aiohttp
import numpy as np
import psutil

from media_server.audio.chunk import SPEAKING_HZ, Pcm, silence
from media_server.caller.arguments import count, seconds
from media_server.caller.demo import make_recordings
from media_server.caller.measuring import encode
from media_server.caller.network import Conditions
from media_server.caller.server_processes import ServerProcesses, listening_on
from media_server.caller.swarm import SwarmCaller
from media_server.errors import ParleyError
from media_server.event_loop import new_event_loop
from media_server.metrics import Metrics
from media_server.transport.webrtc.pacing import Pacing
from tests.bench.table import show
from tests.servers import server

MINUTES = 30.0
CALLS = 50
PERIOD_S = 10.0
"""From the beginning of a place's call to that of its next one."""

LIFE_S = 9.5
"""Of a call: it takes a moment to hang up."""

LOSS = 0.02
WARM_UP_S = 60.0
"""Or an eighth of a shorter run, but at least a call's life: pools fill, and the allocator finds its size."""

COMPARED_S = 60.0
"""Or a quarter of a shorter run: so much at the beginning and at the end is compared."""

EMPTY_S = 35.0
"""A call whose end was not heard of is kept for `webrtc.gone_after_s` and `call.resume_s`, 28 s: then it is empty."""

TOLERANCE = 0.05
SAMPLE_EVERY_S = 1.0
_LINES = ("can i get a latte please", "i'd like two flat whites", "one espresso")
_BEFORE_S, _AFTER_S = 3.0, 4.0  # the greeting is heard before, the reply after
_FIGURES = ("memory_mb", "media_mb", "models_mb", "descriptors", "threads", "processes", "tasks", "calls")
_WORKER = "media_server.engines.workers.child"
_GAUGE = re.compile(r"^parley_(tasks|calls_active|voice_to_voice_ms_count) ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the server held at one time.

    Attributes:
        memory_mb: of all its processes: `media_mb`, and `models_mb` of its model workers. A recogniser has 10 MB for
            each utterance that is open at the same time.
        tasks: of its event loops; None: it does not tell.
        replies: so far.
    """

    at_s: float
    memory_mb: float
    media_mb: float
    models_mb: float
    descriptors: float
    threads: float
    processes: float
    tasks: float | None
    calls: float | None
    replies: float | None


@dataclass(slots=True)
class Counts:
    """What became of the calls."""

    begun: int = 0
    heard: int = 0
    failures: Counter[str] = field(default_factory=Counter)


async def run(minutes: float = MINUTES, calls: int = CALLS) -> None:
    """Let callers come and go for so long, and compare."""
    sayings = [saying.pcm for saying in await make_recordings(_LINES) if saying.pcm is not None]
    payloads = [encode(_with_pauses(pcm), LOSS) for pcm in sayings]
    # What the callers' own timer misses is not the server's: they share the machine.
    logging.getLogger("media_server.transport.webrtc.pacing").setLevel(logging.ERROR)
    toml = f"[server]\nworkers = 1\nmax_calls = {2 * calls}\n[call]\ngreeting_after_ms = 0\n"
    counts = Counts()
    # A request, a connection: those that a client keeps open would be counted as the server's.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with server(toml) as url, aiohttp.ClientSession(connector=connector) as http:
        gauge = Gauge(url, http)
        empty_before = await gauge.sample()
        samples = await _soak(url, http, gauge, payloads, counts, seconds=minutes * 60, calls=calls)
        await asyncio.sleep(EMPTY_S)
        empty_after = await gauge.sample()
    _show(samples, empty_before, empty_after, counts, minutes, calls)


class Gauge:
    """Looks at what a server's processes hold."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self._server = ServerProcesses(listening_on(url))

    async def sample(self) -> Sample:
        """Look."""
        processes = self._server.all()
        held = [0.0, 0.0, 0.0, 0.0]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory_mb = process.memory_info().rss / 1e6
                models_mb = memory_mb if _WORKER in process.cmdline() else 0.0
                looked = (memory_mb, models_mb, process.num_fds(), process.num_threads())
                held = [one + two for one, two in zip(held, looked, strict=True)]
        async with self._http.get(f"{self._url}/metrics") as answer:
            told = {name: float(value) for name, value in _GAUGE.findall(await answer.text())}
        return Sample(
            at_s=asyncio.get_running_loop().time(),
            memory_mb=held[0],
            media_mb=held[0] - held[1],
            models_mb=held[1],
            descriptors=held[2],
            threads=held[3],
            processes=len(processes),
            tasks=told.get("tasks"),
            calls=told.get("calls_active"),
            replies=told.get("voice_to_voice_ms_count"),
        )


async def _soak(
    url: str,
    http: aiohttp.ClientSession,
    gauge: Gauge,
    payloads: Sequence[Sequence[bytes]],
    counts: Counts,
    *,
    seconds: float,
    calls: int,
) -> list[Sample]:
    samples = []
    pacing = Pacing(Metrics())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(pacing.run(), name="pacing")]
        places = round(calls * PERIOD_S / LIFE_S)  # as many calls as wanted are there on average
        running += [
            tasks.create_task(_come_and_go(url, http, pacing, payloads, counts, place, places), name=f"place {place}")
            for place in range(places)
        ]
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        end_s = due_s + seconds
        while due_s < end_s:
            samples.append(await gauge.sample())
            due_s = max(due_s + SAMPLE_EVERY_S, loop.time())
            await asyncio.sleep(due_s - loop.time())
        for task in running:
            task.cancel()
    return samples


async def _come_and_go(
    url: str,
    http: aiohttp.ClientSession,
    pacing: Pacing,
    payloads: Sequence[Sequence[bytes]],
    counts: Counts,
    place: int,
    places: int,
) -> None:
    """Call, again and again. The places begin evenly over a period: calls begin and end all the time."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + PERIOD_S * place / places
    while True:
        await asyncio.sleep(due_s - loop.time())
        number = counts.begun
        counts.begun += 1
        caller = SwarmCaller(
            url,
            payloads[number % len(payloads)],
            pacing,
            conditions=Conditions(loss=LOSS),
            stream=number,
        )
        try:
            async with asyncio.timeout(LIFE_S):
                await caller.call(http, lambda: None)
        except TimeoutError:
            if caller.setup_ms is None:
                counts.failures[f"the server was not heard within {LIFE_S:g} s"] += 1
            else:
                counts.heard += 1
        except ParleyError as error:
            counts.failures[str(error).replace(url, "")] += 1
        while due_s <= loop.time():
            due_s += PERIOD_S


def _with_pauses(pcm: Pcm) -> Pcm:
    before, after = (silence(round(each * SPEAKING_HZ)) for each in (_BEFORE_S, _AFTER_S))
    return np.concatenate([before, pcm, after])


def _show(
    samples: Sequence[Sample], empty_before: Sample, empty_after: Sample, counts: Counts, minutes: float, calls: int
) -> None:
    begin_s, end_s = samples[0].at_s, samples[-1].at_s
    warm_s = begin_s + max(LIFE_S, min(WARM_UP_S, minutes * 60 / 8))
    compared_s = min(COMPARED_S, minutes * 60 / 4)
    first = [sample for sample in samples if warm_s <= sample.at_s < warm_s + compared_s]
    last = [sample for sample in samples if sample.at_s > end_s - compared_s]
    rows = []
    for name in _FIGURES:
        before, after = (_median(part, name) for part in (first, last))
        empty = tuple(getattr(sample, name) for sample in (empty_before, empty_after))
        change = after / before - 1 if before and after is not None else None
        rows.append(
            {
                "": name.replace("_", " "),
                "first minute": _shown(before),
                "last minute": _shown(after),
                "change %": "-" if change is None else f"{change * 100:+.1f}",
                "target": f"+-{TOLERANCE:.0%}" if name != "calls" else "",
                "kept": "-" if change is None or name == "calls" else "yes" if abs(change) <= TOLERANCE else "NO",
                "empty before": _shown(empty[0]),
                "empty after": _shown(empty[1]),
            }
        )
    show(
        "soak",
        f"{minutes:g} minutes, {calls} calls of {LIFE_S:g} s at a time under {LOSS:.0%} loss: what the server holds",
        rows,
        begun=counts.begun,
        heard=counts.heard,
        failures=dict(counts.failures),
        samples=[asdict(sample) for sample in samples],
    )
    failed = sum(counts.failures.values())
    print(f"  calls: {counts.begun} begun, {counts.heard} heard the server, {failed} failed")
    print(f"  replies to what they said: {_shown(empty_after.replies)}")
    for failure, n in counts.failures.most_common(5):
        print(f"  failed {n} times: {failure}")


def _median(samples: Sequence[Sample], name: str) -> float | None:
    values = [value for sample in samples if (value := getattr(sample, name)) is not None]
    return statistics.median(values) if values else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value % 1 else f"{value:.0f}"


def main() -> int:
    """Run it with other numbers; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=seconds, default=MINUTES, metavar="M", help="default: %(default)g")
    parser.add_argument("--calls", type=count, default=CALLS, metavar="N", help="at a time (default: %(default)s)")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run(args.minutes, args.calls))
    return 0


if __name__ == "__main__":
    sys.exit(main())
