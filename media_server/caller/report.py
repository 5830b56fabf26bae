"""What came of a call: its turns, their latencies, and the table at the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from media_server.caller.client import SetupTimes
from media_server.caller.subtitles import STAGES

_HEARD = "heard_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyReport:
    """One reply.

    Attributes:
        status: the wire's word: `completed`, `cancelled`, `failed`, `incomplete`; `in_progress` if its end never came.
        text: what the agent wrote.
        heard: the part that was heard, where it was cut; None: nothing was cut.
        latency: the stages as the server measured them, in milliseconds.
    """

    id: str
    status: str
    text: str
    heard: str | None
    latency: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """One turn.

    Attributes:
        said: the recording's name, or the typed line.
        transcripts: what the server recognised; several if the recording has long pauses.
        answered: whether a reply came that did not fail, and was heard to its end.
        heard_ms: from the last sound sent to the first sound heard, measured here; None: nothing to measure.
        barge_ins: the server's measurements of cuts in this turn.
    """

    said: str
    transcripts: list[str]
    replies: list[ReplyReport]
    answered: bool
    heard_ms: float | None
    barge_ins: list[dict[str, float | None]]


@dataclass(slots=True)
class CallReport:
    """One call.

    Attributes:
        greeting: what the agent said first.
        error: why the call ended before its time; empty: it did not.
    """

    url: str
    call_id: str = ""
    setup: SetupTimes = field(default_factory=SetupTimes)
    greeting: str = ""
    turns: list[TurnReport] = field(default_factory=list)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON types, with the percentiles of each stage."""
        stages = {stage: percentiles(values) for stage, values in self._stages().items() if values}
        return {**asdict(self), "latency": stages}

    def table(self) -> list[str]:
        """Return the lines of the table: each stage's percentiles over all turns."""
        setup = {name: value for name, value in asdict(self.setup).items() if value is not None}
        lines = []
        if setup:
            steps = ", ".join(
                f"{name.removesuffix('_ms').replace('_', ' ')} {value:.0f}" for name, value in setup.items()
            )
            lines.append(f"set-up: {steps} ms after the offer")
        rows = {stage: values for stage, values in self._stages().items() if values}
        if rows:
            lines.append(f"{'ms':<16}{'turns':>6}{'p50':>8}{'p95':>8}{'p99':>8}")
        for stage, values in rows.items():
            of = percentiles(values)
            name = {**STAGES, _HEARD: "heard here"}[stage]
            lines.append(f"{name:<16}{len(values):>6}{of['p50']:>8.0f}{of['p95']:>8.0f}{of['p99']:>8.0f}")
        return lines

    def _stages(self) -> dict[str, list[float]]:
        stages: dict[str, list[float]] = {
            stage: [reply.latency[stage] for turn in self.turns for reply in turn.replies if stage in reply.latency]
            for stage in STAGES
        }
        stages[_HEARD] = [turn.heard_ms for turn in self.turns if turn.heard_ms is not None]
        return stages


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 by the nearest rank: each is a value that really occurred."""
    ordered = sorted(values)
    return {f"p{share}": ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] for share in (50, 95, 99)}


def report_turn(
    said: str, events: Sequence[Mapping[str, Any]], *, answered: bool, heard_ms: float | None
) -> TurnReport:
    """Return what the events of one turn tell."""
    transcripts = []
    barge_ins = []
    heard: dict[str, str] = {}
    latencies: dict[str, dict[str, float]] = {}
    responses: dict[str, Mapping[str, Any]] = {}
    written: dict[str, str] = {}
    for event in events:
        match event.get("type"):
            case "conversation.item.input_audio_transcription.completed":
                transcripts.append(str(event["transcript"]))
            case "response.created" | "response.done":
                responses[str(event["response"]["id"])] = event["response"]
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                reply_id = str(event["response_id"])
                written[reply_id] = written.get(reply_id, "") + str(event["delta"])
            case "parley.heard":
                heard[str(event["item_id"])] = str(event["text"])
            case "parley.latency":
                latencies[str(event["response_id"])] = {
                    stage: float(event[stage]) for stage in STAGES if event.get(stage) is not None
                }
            case "parley.barge_in":
                barge_ins.append({key: event.get(key) for key in ("duck_ms", "cut_ms", "silence_ms", "ear_ms")})
    replies = [
        ReplyReport(
            id=reply_id,
            status=str(response.get("status")),
            text=written.get(reply_id, ""),
            heard=next((heard[item["id"]] for item in response.get("output") or [] if item.get("id") in heard), None),
            latency=latencies.get(reply_id, {}),
        )
        for reply_id, response in responses.items()
    ]
    return TurnReport(
        said=said, transcripts=transcripts, replies=replies, answered=answered, heard_ms=heard_ms, barge_ins=barge_ins
    )
