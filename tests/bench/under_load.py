"""A server under load: `parley load` as a process of its own, what came of it, and how many calls to try next."""

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from media_server.audio.chunk import FRAME_MS
from media_server.caller.measuring import LoadReport, Percentiles
from media_server.caller.network import Conditions
from media_server.caller.swarm import CONNECT_TIMEOUT_S
from media_server.config import ROOT
from media_server.errors import PeerGoneError

LATE_LIMIT = 0.01
"""A server that carries its calls has less than this share of packets more than 20 ms late."""

LEFT_OUT_LIMIT = 0.02
"""What is not sent at all is not late: a server that leaves out more than this does not carry its calls either."""

UNHEARD_LIMIT = 0.05
"""Packets in time say nothing of what is in them: an echo from which more chirps than this are missing, and more than
one, does not carry its calls."""

NEAR = 0.1
"""The most calls are known well enough if this share more was too much."""

COLUMNS = (
    *("calls", "server CPU", "callers' CPU", "late", "lost"),
    *("ear p50", "ear p95", "set-up p50", "set-up p95", "memory", "threads", "note"),
)
NOTE_CHARS = 80

_SPARE_S = 30.0
"""For a load to start, to settle and to hang up, on a machine that is too busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What came of one load.

    Attributes:
        calls: that were asked for.
        report: None: no call came up.
        why: what went wrong, in a few words; empty: every call came up and stayed.
    """

    calls: int
    report: LoadReport | None
    why: str = ""

    @property
    def carried(self) -> bool:
        """Return whether the server carried all calls: none failed, and few packets were late or left out."""
        return not self.too_much

    @property
    def too_much(self) -> str:
        """Return what tells that these calls were too many; empty: nothing does."""
        if self.report is None or self.report.failures:
            return self.why
        late = self.report.late_over_20ms_share
        due = self.report.calls * self.report.seconds * 1000 / FRAME_MS
        if late is None or late >= LATE_LIMIT:
            return "late"
        if self.report.packets < due * (1 - LEFT_OUT_LIMIT):
            return "packets left out"
        unheard = self.report.chirps - self.report.chirps_heard
        return "sound left out" if unheard > max(1, self.report.chirps * UNHEARD_LIMIT) else ""

    @property
    def server_cores(self) -> float:
        """Return how many cores the server took, all its processes together; NaN: not known."""
        if self.report is None or self.report.server_cpu_ms_per_call_second is None:
            return math.nan
        return self.report.server_cpu_ms_per_call_second * self.report.calls / 1000

    @property
    def caller_cores(self) -> float:
        """Return how many cores the callers took; NaN: not known."""
        if self.report is None:
            return math.nan
        return self.report.caller_cpu_ms_per_call_second * self.report.calls / 1000


def echo_settings(workers: int, max_calls: int) -> str:
    """Return the settings of our own server, as TOML: callers hear themselves."""
    return f'[call]\nmode = "echo"\n[server]\nworkers = {workers}\nmax_calls = {max_calls}\n'


async def find_most(
    serve: Callable[[], AbstractAsyncContextManager[str]],
    ladder: Sequence[int],
    *,
    limit: int,
    seconds: float,
    rate: float,
    whole_ladder: bool = False,
) -> dict[int, Loaded]:
    """Load a server with more and more calls; return what came of each number, in the order in which they were tried.

    Args:
        serve: runs a server and gives its address; each load meets a fresh one, or memory would be that of the loads
            before, and calls that were lost might still be at work.
        ladder: see `next_calls`.
        limit: see `next_calls`.
        seconds: see `load`.
        rate: see `load`.
        whole_ladder: measure all of it, carried or not.
    """
    loads: dict[int, Loaded] = {}
    while True:
        tried = {calls: loaded.carried for calls, loaded in loads.items()}
        calls = next((calls for calls in ladder if calls not in tried), None) if whole_ladder else None
        calls = calls or next_calls(tried, ladder, limit)
        if calls is None:
            return loads
        # Once more if it was too much: something else may have been in the way.
        for _ in range(2):
            loads[calls] = await load_fresh(serve, calls, seconds=seconds, rate=rate)
            if loads[calls].carried:
                break


async def load_fresh(
    serve: Callable[[], AbstractAsyncContextManager[str]], calls: int, *, seconds: float, rate: float
) -> Loaded:
    """Run a server and load it; see `find_most` and `load`. One that does not start carries no call."""
    try:
        async with serve() as url:
            loaded = await load(url, calls, seconds=seconds, rate=rate)
    except PeerGoneError as error:
        loaded = Loaded(calls=calls, report=None, why=str(error).splitlines()[-1])
    print(f"  {calls} calls: {loaded.too_much or 'carried'}", file=sys.stderr, flush=True)
    return loaded


async def load(url: str, calls: int, *, seconds: float, rate: float) -> Loaded:
    """Load a server on this machine.

    Args:
        url: as of `parley load`.
        calls: at the same time.
        seconds: that are measured.
        rate: new calls a second; 0: all at once.
    """
    limit_s = (calls / rate if rate else 0) + CONNECT_TIMEOUT_S + seconds + _SPARE_S
    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        path = Path(folder) / "load.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "signaling", "load", "--url", url, "--calls", str(calls)),
            *("--seconds", str(seconds), "--rate", str(rate), "--json", str(path)),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), limit_s)
        except TimeoutError:
            return Loaded(calls=calls, report=None, why=f"the load did not end within {limit_s:.0f} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if not path.exists():
            lines = said.decode(errors="replace").splitlines() or [f"status {process.returncode}"]
            return Loaded(calls=calls, report=None, why=lines[-1].removeprefix("parley load: "))
        report = read_report(path.read_text(encoding="utf-8"))
    n_failed = len(report.failures)
    why = f"{n_failed} of {calls} failed: {report.failures[0]}" if n_failed else ""
    return Loaded(calls=calls, report=report, why=why)


def read_report(text: str) -> LoadReport:
    """Return what `parley load --json` wrote."""
    found = json.loads(text)
    return LoadReport(
        **found
        | {
            "mouth_to_ear_ms": Percentiles(**found["mouth_to_ear_ms"]),
            "setup_ms": Percentiles(**found["setup_ms"]),
            "conditions": Conditions(**found["conditions"]),
        }
    )


def next_calls(tried: Mapping[int, bool], ladder: Sequence[int], limit: int) -> int | None:
    """Return how many calls to try next; None: the most that are carried are known, to within a tenth.

    First up the ladder, then twice as many each time; after the first that were too many, halfway between.

    Args:
        tried: numbers of calls, and whether they were carried.
        ladder: to begin with, ascending.
        limit: the most calls that are worth trying.
    """
    most = most_carried(tried)
    too_many = min((calls for calls, carried in tried.items() if not carried and calls > most), default=None)
    if too_many is None:
        following = next((calls for calls in ladder if calls > most), 2 * most)
        return min(following, limit) if most < limit else None
    return (most + too_many) // 2 if too_many - most > max(1, most * NEAR) else None


def most_carried(tried: Mapping[int, bool]) -> int:
    """Return the most calls that were carried; 0: none were."""
    return max((calls for calls, carried in tried.items() if carried), default=0)


def rows(name: str, loads: Mapping[int, Loaded]) -> list[dict[str, Any]]:
    """Return a row for each load of a server, by the number of calls; the most that were carried are marked."""
    most = most_carried({calls: loaded.carried for calls, loaded in loads.items()})
    return [row(name, loads[calls], "most carried" if calls == most else "") for calls in sorted(loads)]


def row(name: str, loaded: Loaded, note: str = "") -> dict[str, Any]:
    """Return a row of a table of loads: CPU in ms a call and second, memory in MB a call, times in ms."""
    report = loaded.report
    if report is None:
        return empty_row(name, loaded.calls, note or loaded.why)
    figures = (
        *(report.calls, report.server_cpu_ms_per_call_second, report.caller_cpu_ms_per_call_second),
        *(_percent(report.late_over_20ms_share), _percent(report.lost_share)),
        *(report.mouth_to_ear_ms.p50, report.mouth_to_ear_ms.p95, report.setup_ms.p50, report.setup_ms.p95),
        *(report.rss_mb_per_call, report.server_threads, (note or loaded.too_much)[:NOTE_CHARS]),
    )
    known = ("-" if figure is None else figure for figure in figures)
    return {"": name, **dict(zip(COLUMNS, known, strict=True))}


def empty_row(name: str, calls: int | str, note: str) -> dict[str, Any]:
    """Return a row for what could not be measured, and why."""
    return {"": name, **dict.fromkeys(COLUMNS, "-"), "calls": calls, "note": note[:NOTE_CHARS]}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
