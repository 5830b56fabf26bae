"""When the next packet is due: every 20 ms on a grid, so that lateness never adds up.

After a stall the grid starts anew: what was missed is not sent in a burst.
"""

STALL_PERIODS = 2
"""So many periods late is a stall; less is made up for, packet by packet."""


class Pacer:
    """A grid of deadlines. Time is passed in."""

    def __init__(self, period_s: float, now_s: float) -> None:
        """Start a grid whose first deadline is `now_s`."""
        self._period_s = period_s
        self._due_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until the next deadline; 0 if it has passed."""
        return max(0.0, self._due_s - now_s)

    def tick(self, now_s: float) -> float:
        """Say that the deadline was met at `now_s`, and return how many seconds late that was.

        The next deadline lies on the grid, or on a new grid after a stall.
        """
        late_s = now_s - self._due_s
        if late_s > STALL_PERIODS * self._period_s:
            self._due_s = now_s
        self._due_s += self._period_s
        return max(0.0, late_s)
