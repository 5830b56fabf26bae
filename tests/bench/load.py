"""How many calls does a server carry, at what price, and what do two media processes carry?

Everything that a call needs is in the media path: VAD, the agent's sound (an echo of callers who speak for two fifths
of the time), `parley.levels` at 5 Hz.

    python -m tests.bench.load --calls 1 10 --seconds 10
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version

from media_server.caller.arguments import count, seconds
from tests.bench.peers.peer import AIORTC
from tests.bench.table import show
from tests.bench.under_load import Loaded, echo_settings, find_most, load_fresh, most_carried, row, rows
from tests.servers import server

CALLS = (1, 10, 50, 100, 150)
WORKERS = (1, 2)
SECONDS = 20.0
RATE = 20.0
AT_ONCE = 100
CALIBRATION_CALLS = 10
LIMIT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """A server with the most calls that it carries.

    Attributes:
        calls: 0: it carries none.
        sure: more were tried, and were too many.
    """

    calls: int
    sure: bool
    server_cores: float
    caller_cores: float


async def run(
    calls: Sequence[int] = CALLS, seconds: float = SECONDS, at_once: int = AT_ONCE, limit: int = LIMIT
) -> None:
    """Measure a peer that everyone knows, then our own server with one worker and with two.

    Args:
        calls: that are all measured, carried or not.
        seconds: that are measured of each.
        at_once: so many begin in the same moment.
        limit: the most calls that are tried.
    """

    def parley(workers: int) -> AbstractAsyncContextManager[str]:
        return server(echo_settings(workers, max(limit, at_once, *calls)))

    print("aiortc's echo", file=sys.stderr)
    known = await load_fresh(AIORTC.serving, CALIBRATION_CALLS, seconds=seconds, rate=RATE)
    table = [row(f"{AIORTC.name} {version(AIORTC.package)}, echo", known, "how fast this machine is today")]
    loads = {"aiortc": [asdict(known)]}
    found = []
    for workers in WORKERS:
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        print(name, file=sys.stderr)
        tried = await find_most(
            partial(parley, workers), calls, limit=limit, seconds=seconds, rate=RATE, whole_ladder=True
        )
        table += rows(name, tried)
        loads[name] = [asdict(loaded) for loaded in tried.values()]
        found.append(saturated(tried))
    print("1 worker, all at once", file=sys.stderr)
    at_once_loaded = await load_fresh(partial(parley, 1), at_once, seconds=seconds, rate=0)
    table.append(row("1 worker, all at once", at_once_loaded))
    loads["at once"] = [asdict(at_once_loaded)]
    one, two = found
    cores = os.cpu_count() or 1
    show(
        "load",
        f"Calls in echo mode on {cores} hardware threads, callers on the same, {RATE:g} new ones a second; "
        "CPU in ms a call and second, memory in MB a call, times in ms",
        table,
        loads=loads,
        most=[asdict(each) for each in found],
        two_workers_against_one=without_callers(one, two, cores),
    )
    for line in sentences(one, two, cores):
        print(f"  {line}")


def saturated(loads: Mapping[int, Loaded]) -> Saturated:
    """Return what the server took with the most calls that it carried."""
    most = most_carried({calls: loaded.carried for calls, loaded in loads.items()})
    if not most:
        return Saturated(calls=0, sure=True, server_cores=0.0, caller_cores=0.0)
    return Saturated(
        calls=most,
        sure=max(loads) > most,
        server_cores=loads[most].server_cores,
        caller_cores=loads[most].caller_cores,
    )


def without_callers(one: Saturated, two: Saturated, cores: int) -> float | None:
    """Return what two workers would carry against one if the callers were elsewhere; None: it cannot be told.

    A worker is one event loop and can use one core. What the callers leave of the `cores` is known, and the calls are
    scaled to what there would be without them. It is an upper bound: where the cores are hardware threads of one core,
    one worker would be faster, too, without callers on the other.
    """
    left_to_one, left_to_two = min(1.0, cores - one.caller_cores), min(2.0, cores - two.caller_cores)
    if not (one.calls and two.calls and one.sure and two.sure and left_to_one > 0 and left_to_two > 0):
        return None
    return (two.calls * min(2, cores) / left_to_two) / (one.calls / left_to_one)


def sentences(one: Saturated, two: Saturated, cores: int) -> list[str]:
    """Return what the table does not say: the most calls, who took which part of the machine, and two against one."""
    lines = [
        f"most calls with less than 1 % of packets over 20 ms late: {each.calls}{'' if each.sure else ' or more'} "
        f"with {name}; the server took {each.server_cores:.2f} cores for them, the callers {each.caller_cores:.2f}"
        for name, each in (("one worker", one), ("two workers", two))
    ]
    ratio = without_callers(one, two, cores)
    if ratio is None:
        return [*lines, "two workers against one: not known, since one of them carried nothing, or all"]
    return [
        *lines,
        f"two workers against one: {two.calls / one.calls:.2f} as measured; with the callers' part of the {cores} "
        f"hardware threads taken off at most {ratio:.2f} (calls scaled to the threads that the workers would have had)",
    ]


def main() -> int:
    """Run it with other numbers; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=count, nargs="+", default=CALLS, metavar="N", help="all are measured")
    parser.add_argument("--seconds", type=seconds, default=SECONDS, metavar="S", help="measured (default: %(default)g)")
    parser.add_argument("--at-once", type=count, default=AT_ONCE, metavar="N", help="calls that begin at once")
    parser.add_argument("--limit", type=count, default=LIMIT, metavar="N", help="the most calls that are tried")
    args = parser.parse_args()
    asyncio.run(run(args.calls, args.seconds, args.at_once, args.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
