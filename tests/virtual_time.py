"""An event loop whose clock jumps to the next timer when nothing else is to be done: an hour of call takes a moment.

Only for code that waits on timers and on itself; a socket is never waited for.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

EPSILON_S = 1e-6
"""A timer is due when the clock has passed it."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.jumps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits for another, and no timer is set: a deadlock")
        if timeout:
            self.now_s += timeout + EPSILON_S
            self.jumps += 1
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now_s

    @property
    def jumps(self) -> int:
        """Return how often there was nothing to do until a timer was due."""
        return self._jumping.jumps

    def advance(self, seconds: float) -> None:
        """Let time pass as if something held the loop for so long."""
        self._jumping.now_s += seconds


def run_virtual(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end in virtual time and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
