"""How fast the caller got the floor: the times of a barge-in, from their first sound to silence."""

from dataclasses import replace

from media_server.events import BargeInMeasured
from media_server.metrics import Metrics


class BargeInClock:
    """Takes the times of one barge-in after the other; all are loop times in seconds."""

    def __init__(self, metrics: Metrics) -> None:
        """`metrics`: told how long each took."""
        self._metrics = metrics
        self._ducked: tuple[float, float] | None = None
        self._cut: BargeInMeasured | None = None
        self._arrived_s = 0.0

    def ducked(self, arrived_s: float, now_s: float) -> None:
        """The reply is quieter now, for sound that came at `arrived_s`."""
        self._ducked = (arrived_s, now_s)

    def unducked(self) -> None:
        """That sound was nothing, or its reply is over."""
        self._ducked = None

    def cut(self, reply_id: str, arrived_s: float, now_s: float) -> None:
        """The reply is cut now, for sound that came at `arrived_s`, or for what it was ducked for."""
        duck_ms = None
        if self._ducked is not None:
            arrived_s, ducked_s = self._ducked
            duck_ms = (ducked_s - arrived_s) * 1000
        self._ducked = None
        self._arrived_s = arrived_s
        self._cut = BargeInMeasured(reply_id, duck_ms, (now_s - arrived_s) * 1000, 0.0, None)

    def silent(self, at_s: float, rtt_ms: float | None) -> BargeInMeasured | None:
        """Return what a barge-in took whose first silent packet went out at `at_s`; None: none is under way."""
        if self._cut is None:
            return None
        silence_ms = (at_s - self._arrived_s) * 1000
        ear_ms = silence_ms + rtt_ms / 2 if rtt_ms is not None else None
        measured = replace(self._cut, silence_ms=silence_ms, ear_ms=ear_ms)
        self._cut = None
        if measured.duck_ms is not None:
            self._metrics.observe("barge_in_duck_ms", measured.duck_ms)
        self._metrics.observe("barge_in_cut_ms", measured.cut_ms)
        self._metrics.observe("barge_in_silence_ms", silence_ms)
        if ear_ms is not None:
            self._metrics.observe("barge_in_ear_ms", ear_ms)
        return measured

    def forget(self) -> None:
        """Nobody is there any more to hear it."""
        self._ducked = self._cut = None
