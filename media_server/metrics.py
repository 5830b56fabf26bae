"""The figures of a process: how long things take, how often they happen, how many there are now.

Every figure is declared once, in `FIGURES`, with the question that it answers; another name is refused. Durations go
into buckets that grow by a twelfth root of two, so a percentile is within 6 % of the truth, costs no memory however
long the process lives, and the coarse buckets that Prometheus is shown add up across processes.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

FIGURES: dict[str, tuple[Literal["duration", "counter", "gauge"], str]] = {
    "voice_to_voice_ms": ("duration", "From the caller's last speech to the first packet of the reply"),
    "endpointing_ms": ("duration", "From the caller's last speech to the decision that the turn is over"),
    "asr_final_ms": ("duration", "From the end of the turn to its final transcript"),
    "llm_first_token_ms": ("duration", "From the final transcript to the language model's first token"),
    "tts_first_audio_ms": ("duration", "From the first sentence given to the voice to its first sound"),
    "first_packet_ms": ("duration", "From the end of the turn to the first packet of the reply"),
    "barge_in_duck_ms": ("duration", "From the packet with the caller's first speech to the quieter reply"),
    "barge_in_cut_ms": ("duration", "From the packet with the caller's first speech to the cut"),
    "barge_in_silence_ms": (
        "duration",
        "From the packet with the caller's first speech to the first silent packet out",
    ),
    "barge_in_ear_ms": ("duration", "From the packet with the caller's first speech to silence at the caller's ear"),
    "frame_late_ms": ("duration", "How late a packet went out against its place on the grid of 20 ms"),
    "loop_lag_ms": ("duration", "How late the event loop comes to work that is due"),
    "live_dropped_ms": ("counter", "Sound of callers that was dropped because the ear fell behind"),
    "packets_received_total": ("counter", "Packets of sound that came, whatever became of them"),
    "packets_lost_total": ("counter", "Packets of sound that never came, or too late"),
    "packets_late_total": ("counter", "Packets of sound that came after their place had been concealed"),
    "packets_duplicate_total": ("counter", "Packets of sound that came a second time"),
    "packets_malformed_total": ("counter", "Packets that cannot be read: as RTP, as sound or as keys"),
    "sound_concealed_ms": ("counter", "Sound of callers that was lost and guessed"),
    "sound_filled_ms": ("counter", "Silence put in because no sound came, or too much was lost to guess"),
    "sound_left_out_ms": ("counter", "Quiet sound of callers left out to come back into step"),
    "stream_restarts_total": ("counter", "Times that a caller's sound had a new source, or jumped in sequence or time"),
    "packets_sent_total": ("counter", "Packets of sound sent"),
    "packets_sent_lost_total": ("counter", "About how many of them never came, as the callers' reports say"),
    "calls_total": ("counter", "Calls that began"),
    "calls_refused_total": ("counter", "Calls refused because all places were taken"),
    "calls_resumed_total": ("counter", "Times that a call went on over another connection"),
    "calls_failed_total": ("counter", "Calls ended by a bug of ours"),
    "replies_stuck_total": ("counter", "Replies that went on for longer than 1 s after they were cancelled"),
    "tasks": ("gauge", "Tasks of the event loop now; a call has about 15"),
    "calls_active": ("gauge", "Calls now, those still connecting included"),
}

_PREFIX = "parley_"
_STEPS = 12  # buckets an octave
_OCTAVES = range(-1, 17)  # 0.5 ms to 65 s; the shorter and the longer go into the first and the last


@dataclass(slots=True)
class _Durations:
    """Counts by bucket: bucket i holds what is at most 2 ** (first octave + (i + 1) / steps) milliseconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (_STEPS * len(_OCTAVES)))
    total: int = 0
    sum_ms: float = 0.0
    max_ms: float = 0.0

    def add(self, value_ms: float, times: int) -> None:
        """Count a duration so many times."""
        place = math.ceil((math.log2(max(value_ms, 1e-6)) - _OCTAVES[0]) * _STEPS) - 1
        self.counts[min(max(place, 0), len(self.counts) - 1)] += times
        self.total += times
        self.sum_ms += value_ms * times
        self.max_ms = max(self.max_ms, value_ms)

    def percentile_ms(self, share: float) -> float | None:
        """Return what `share` of the durations do not exceed, rounded up to a bucket's end; None if there are none."""
        rank = math.ceil(share * self.total)
        seen = 0
        for place, count in enumerate(self.counts):
            seen += count
            if seen >= rank > 0:
                return min(2 ** (_OCTAVES[0] + (place + 1) / _STEPS), self.max_ms)
        return None

    def up_to_octaves(self) -> list[tuple[str, int]]:
        """Return how many are at most 1, 2, 4 ... ms, as Prometheus counts: each bucket holds the ones before it."""
        return [
            (f"{2.0 ** (octave + 1):g}", sum(self.counts[: (step + 1) * _STEPS]))
            for step, octave in enumerate(_OCTAVES[:-1])
        ]


class Metrics:
    """The figures of this process. For the event loop's thread only."""

    def __init__(self) -> None:
        self._durations = {name: _Durations() for name, (kind, _) in FIGURES.items() if kind == "duration"}
        self._numbers = {name: 0.0 for name, (kind, _) in FIGURES.items() if kind != "duration"}

    def observe(self, name: str, value_ms: float, times: int = 1) -> None:
        """Add a duration, or so many that are alike."""
        _check(name, "duration")
        self._durations[name].add(value_ms, times)

    def count(self, name: str, amount: float = 1) -> None:
        """Let a counter grow."""
        _check(name, "counter")
        self._numbers[name] += amount

    def gauge(self, name: str, value: float) -> None:
        """Say how many there are now."""
        _check(name, "gauge")
        self._numbers[name] = value

    def snapshot(self) -> dict[str, Any]:
        """Return all figures: a number, or for durations `count`, `p50`, `p95`, `p99` and `max` (None: none yet)."""
        figures: dict[str, Any] = {}
        for name in FIGURES:
            if name in self._numbers:
                figures[name] = self._numbers[name]
                continue
            durations = self._durations[name]
            figures[name] = {
                "count": durations.total,
                "p50": durations.percentile_ms(0.50),
                "p95": durations.percentile_ms(0.95),
                "p99": durations.percentile_ms(0.99),
                "max": durations.max_ms if durations.total else None,
            }
        return figures

    def render(self) -> str:
        """Return all figures in the text format of Prometheus, version 0.0.4."""
        lines: list[str] = []
        for name, (kind, help_text) in FIGURES.items():
            shown = _PREFIX + name
            lines.append(f"# HELP {shown} {help_text}")
            lines.append(f"# TYPE {shown} {'histogram' if kind == 'duration' else kind}")
            if kind != "duration":
                lines.append(f"{shown} {self._numbers[name]:.15g}")
                continue
            durations = self._durations[name]
            lines += [f'{shown}_bucket{{le="{bound}"}} {count}' for bound, count in durations.up_to_octaves()]
            lines.append(f'{shown}_bucket{{le="+Inf"}} {durations.total}')
            lines.append(f"{shown}_sum {durations.sum_ms:.15g}")
            lines.append(f"{shown}_count {durations.total}")
        return "\n".join(lines) + "\n"


def _check(name: str, kind: str) -> None:
    if name not in FIGURES:
        raise ValueError(f"unknown figure {name!r}; it must be declared in FIGURES")
    if FIGURES[name][0] != kind:
        raise ValueError(f"{name} is a {FIGURES[name][0]}, used as a {kind}")
