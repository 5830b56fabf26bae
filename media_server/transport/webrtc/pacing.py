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
        self.stalls = 0
        self.worst_late_ms = 0.0

    def wait_s(self, now_s: float) -> float:
        """Return how long it is until the next deadline; 0 if it has passed."""
        return max(0.0, self._due_s - now_s)

    def tick(self, now_s: float) -> None:
        """Say that the deadline was met at `now_s`; the next one lies on the grid, or on a new grid after a stall."""
        late_s = now_s - self._due_s
        self.worst_late_ms = max(self.worst_late_ms, late_s * 1000)
        if late_s > STALL_PERIODS * self._period_s:
            self.stalls += 1
            self._due_s = now_s
        self._due_s += self._period_s
