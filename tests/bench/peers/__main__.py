"""`make bench-peers`: what FastRTC, Pipecat and a plain aiortc echo carry, and what ours does, in one run.

FastRTC and Pipecat get environments of their own in `.venv-peers`, pinned; aiortc is the one that we stand on. All are
an echo and are measured by `parley load`: the same callers, one fresh server a load, first with so many calls as are
named, then with more until a call fails, 1 % of the packets are over 20 ms late, or 2 % are not sent, twice in a row.
A peer that cannot be installed or started is a row that says why.

    python -m tests.bench.peers --peers fastrtc --calls 1 5 --seconds 5
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

from media_server.caller.arguments import count, seconds
from media_server.errors import PeerGoneError
from signaling.house import VERSION
from tests.bench.peers.peer import AIORTC, Peer
from tests.bench.table import show
from tests.bench.under_load import Loaded, echo_settings, empty_row, find_most, rows
from tests.servers import server

_PIPECAT = ("pipecat-ai[webrtc,silero]==1.14.0", "aiortc==1.16.0", "fastapi==0.165.0", "uvicorn==0.54.0")

PEERS = {
    "aiortc": AIORTC,
    "fastrtc": Peer(
        name="FastRTC",
        package="fastrtc",
        script="fastrtc_echo.py",
        path="/webrtc/offer",
        environment="fastrtc",
        requirements=("fastrtc==0.0.34", "aiortc==1.16.0", "fastapi==0.163.2", "uvicorn==0.54.0"),
    ),
    "pipecat": Peer(
        name="Pipecat",
        package="pipecat-ai",
        script="pipecat_echo.py",
        path="/api/offer",
        environment="pipecat",
        requirements=_PIPECAT,
    ),
    "pipecat-vad": Peer(
        name="Pipecat with VAD",
        package="pipecat-ai",
        script="pipecat_echo.py",
        path="/api/offer",
        environment="pipecat",
        requirements=_PIPECAT,
        options=("--vad",),
    ),
}
OURS = "parley"
CALLS = (1, 10)
SECONDS = 10.0
LIMIT = 400
OUR_RATE = 20.0
RATE = 5.0
"""New calls a second: slowly, so that it is the calls that are too many for a peer, and not their beginnings."""


async def run(
    names: Sequence[str] = (OURS, *PEERS), calls: Sequence[int] = CALLS, seconds: float = SECONDS, limit: int = LIMIT
) -> None:
    """Measure ours and the peers in turn.

    Args:
        names: of PEERS, or ours.
        calls: to begin with, ascending.
        seconds: that are measured of each number of calls.
        limit: the most calls that are tried.
    """
    table: list[dict[str, Any]] = []
    loads: dict[str, list[dict[str, Any]]] = {}

    async def measure(
        name: str, serve: Callable[[], AbstractAsyncContextManager[str]], rate: float
    ) -> dict[int, Loaded]:
        print(name, file=sys.stderr, flush=True)
        return await find_most(serve, calls, limit=limit, seconds=seconds, rate=rate)

    for each in names:
        if each == OURS:
            name = f"Parley {VERSION}, with VAD"
            found = await measure(name, partial(server, echo_settings(1, limit)), OUR_RATE)
        else:
            peer = PEERS[each]
            try:
                name = await _install(peer)
            except PeerGoneError as error:
                table.append(empty_row(peer.name, "-", str(error)))
                continue
            found = await measure(name, peer.serving, RATE)
        table += rows(name, found)
        loads[name] = [asdict(loaded) for loaded in found.values()]
    if table:
        show(
            "peers",
            f"Echoes, one media process each, callers on the same machine, {RATE:g} new calls a second "
            f"(at ours {OUR_RATE:g}); CPU in ms a call and second, MB a call, ms",
            table,
            loads=loads,
        )


async def _install(peer: Peer) -> str:
    """Make its environment; return its name with its version, and with aiortc's that it stands on."""
    await peer.install()
    name = f"{peer.name} {await peer.version(peer.package)}"
    return name if peer.package == "aiortc" else f"{name} (aiortc {await peer.version('aiortc')})"


def main() -> int:
    """Run what is asked for; return the exit status."""
    names = (OURS, *PEERS)
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peers", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--calls", type=count, nargs="+", default=CALLS, metavar="N", help="to begin with, ascending")
    parser.add_argument("--seconds", type=seconds, default=SECONDS, metavar="S", help="measured (default: %(default)g)")
    parser.add_argument("--limit", type=count, default=LIMIT, metavar="N", help="the most calls that are tried")
    args = parser.parse_args()
    asyncio.run(run(args.peers, sorted(args.calls), args.seconds, args.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
