"""When packets are due: one timer for all calls of a process, every 5 ms, and each call every fourth time.

    phase     0    1    2    3    0    1 ...
    ms        0    5   10   15   20   25

A call stands in one phase. The first few share one, so that the process wakes up for all of them at once; then a new
one goes to the phase with the fewest, so that a tick never has more than a quarter of many calls to serve and the loop
is not held for longer than that takes. Nobody is woken for a phase without calls. Deadlines lie on a grid, so that
lateness never adds up. After a stall the grid starts anew: what was missed is not sent in a burst.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

from media_server.audio.chunk import FRAME_MS
from media_server.metrics import Metrics

logger = logging.getLogger(__name__)

PHASES = 4
TICK_S = FRAME_MS / 1000 / PHASES

FEW = 4
"""So many calls share a phase before another is begun: they hold the loop for less than 1 ms."""

STALL_TICKS = 2 * PHASES
"""So many ticks late is a stall; less is made up for, tick by tick."""

Beat: TypeAlias = Callable[[float], None]
"""Serves one call; is given its place on the grid, on the loop's clock. What it raises ends its own beats alone."""


class Pacing:
    """The timer."""

    def __init__(self, metrics: Metrics) -> None:
        """`metrics`: told how late packets go out."""
        self._metrics = metrics
        self._phases: tuple[dict[Beat, asyncio.Future[None]], ...] = tuple({} for _ in range(PHASES))
        self._called = asyncio.Event()

    @property
    def beats(self) -> int:
        """Return how many calls are served."""
        return sum(len(phase) for phase in self._phases)

    async def keep(self, beat: Beat) -> None:
        """Have `beat` called every 20 ms until it raises, and raise that. Ends at once when cancelled."""
        shared = [phase for phase in self._phases if 0 < len(phase) < FEW]
        phase = min(shared or self._phases, key=len)
        phase[beat] = failed = asyncio.get_running_loop().create_future()
        self._called.set()
        try:
            await failed
        finally:
            phase.pop(beat, None)
            del failed  # holds the error, which holds this frame: only the garbage collector would find both

    async def run(self) -> None:
        """Keep time until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        tick = 0
        while True:
            while not self.beats:
                self._called.clear()
                await self._called.wait()
                due_s = loop.time()
            while not self._phases[tick % PHASES]:
                due_s += TICK_S
                tick += 1
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            now_s = loop.time()
            late_s = max(0.0, now_s - due_s)
            if late_s > STALL_TICKS * TICK_S:
                if self.beats:
                    logger.warning("the event loop stood still for %.0f ms", late_s * 1000)
                    self._metrics.observe("frame_late_ms", late_s * 1000, self.beats)
                missed = int(late_s / TICK_S)
                due_s += missed * TICK_S
                tick += missed
            self._serve(self._phases[tick % PHASES], due_s, max(0.0, now_s - due_s))
            due_s += TICK_S
            tick += 1

    def _serve(self, phase: dict[Beat, asyncio.Future[None]], due_s: float, late_s: float) -> None:
        if not phase:
            return
        self._metrics.observe("frame_late_ms", late_s * 1000, len(phase))
        for beat, failed in tuple(phase.items()):
            try:
                beat(due_s)
            except Exception as error:
                # What ends one call is that call's alone; `keep` raises it there.
                phase.pop(beat, None)
                if not failed.done():
                    failed.set_exception(error)
        del beat, failed  # as in `keep`: the error of any of them holds this frame
