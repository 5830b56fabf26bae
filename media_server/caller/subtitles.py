"""A call as lines of text: who said what, what was cut, how long it took. Events of the wire in, lines out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STAGES: Mapping[str, str] = {
    "endpointing_ms": "end of turn",
    "asr_final_ms": "transcript",
    "llm_first_token_ms": "first word",
    "tts_first_audio_ms": "first sound",
    "first_packet_ms": "first packet",
    "voice_to_voice_ms": "voice to voice",
}
"""The stages of `parley.latency`, in their order, and what people read."""

_INDENT = "       "
_MAX_ARGUMENTS = 80


@dataclass(frozen=True, slots=True)
class Line:
    """One line. A `live` line is written over by the next one, where the terminal can."""

    text: str
    live: bool = False


@dataclass(slots=True)
class _Reply:
    """What the agent says in one item."""

    written: str = ""
    shown: bool = False


@dataclass(slots=True)
class Subtitles:
    """Tells a call as it goes."""

    _partials: dict[str, str] = field(default_factory=dict)
    _replies: dict[str, _Reply] = field(default_factory=dict)
    _live: str = ""
    _guesses: bool = False

    def lines(self, event: Mapping[str, Any]) -> list[Line]:  # noqa: C901, PLR0911 - a flat table
        """Return what `event` has to say to people, often nothing."""
        item_id = str(event.get("item_id", ""))
        match event.get("type"):
            case "conversation.item.input_audio_transcription.delta":
                return self._stable(item_id, str(event["delta"]))
            case "parley.partial":
                self._guesses = True
                return self._partial(f"{event['stable']} {event['tail']}".strip())
            case "conversation.item.input_audio_transcription.completed":
                self._partials.pop(item_id, None)
                self._live = ""
                return [Line(f"you:   {str(event['transcript']).strip() or '(no words)'}")]
            case "conversation.item.input_audio_transcription.failed":
                self._partials.pop(item_id, None)
                return [Line(f"error: not recognised: {event['error'].get('message', '')}")]
            case "conversation.item.added":
                return _typed(event["item"])
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                self._reply(item_id).written += str(event["delta"])
            case "response.output_audio_transcript.done":
                return self._said(item_id, str(event["transcript"]))
            case "response.output_text.done":
                return self._said(item_id, str(event["text"]))
            case "response.function_call_arguments.done":
                return [Line(f"agent: calls {event['name']}({str(event['arguments'])[:_MAX_ARGUMENTS]})")]
            case "parley.heard":
                return self._heard(item_id, str(event["text"]))
            case "parley.barge_in":
                return [Line(f"{_INDENT}{_barge_in(event)}")]
            case "parley.latency":
                stages = _latency(event)
                return [Line(f"{_INDENT}{stages}")] if stages else []
            case "response.done":
                return self._done(event["response"])
            case "error":
                return [Line(f"error: {event['error'].get('message', 'no reason given')}")]
        return []

    def _stable(self, item_id: str, delta: str) -> list[Line]:
        text = self._partials.get(item_id, "") + delta
        self._partials[item_id] = text
        # A server that also sends its guesses shows more with each of them than the stable words alone.
        return [] if self._guesses else self._partial(text)

    def _partial(self, text: str) -> list[Line]:
        if not text or text == self._live:
            return []
        self._live = text
        return [Line(f"you (partial): {text}", live=True)]

    def _reply(self, item_id: str) -> _Reply:
        return self._replies.setdefault(item_id, _Reply())

    def _said(self, item_id: str, text: str) -> list[Line]:
        reply = self._reply(item_id)
        if reply.shown:
            return []
        reply.shown = True
        return [Line(f"agent: {text}")]

    def _heard(self, item_id: str, text: str) -> list[Line]:
        reply = self._reply(item_id)
        heard = f"{text.strip()} --" if text.strip() else "--"
        if reply.shown:
            return [Line(f"{_INDENT}cut; heard: {heard}")]
        reply.shown = True
        return [Line(f"agent: {heard} (cut)")]

    def _done(self, response: Mapping[str, Any]) -> list[Line]:
        lines = []
        for item in response.get("output") or []:
            reply = self._replies.get(str(item.get("id", "")))
            if reply is not None and not reply.shown and reply.written:
                reply.shown = True
                lines.append(Line(f"agent: {reply.written} -- ({response.get('status')})"))
        details = response.get("status_details") or {}
        match response.get("status"):
            case "failed":
                error = details.get("error") or {}
                lines.append(Line(f"error: the reply failed: {error.get('message') or error.get('code', 'no reason')}"))
            case "incomplete":
                lines.append(Line(f"{_INDENT}incomplete: {details.get('reason', 'no reason given')}"))
        return lines


def _typed(item: Mapping[str, Any]) -> list[Line]:
    """Return what the caller typed; what was spoken is told when it is recognised."""
    if item.get("role") != "user":
        return []
    text = " ".join(
        str(part.get("text") or "") for part in item.get("content") or [] if part.get("type") == "input_text"
    )
    return [Line(f"you:   {text}")] if text else []


def _latency(event: Mapping[str, Any]) -> str:
    parts = [f"{name} {event[stage]:.0f}" for stage, name in STAGES.items() if event.get(stage) is not None]
    return f"{', '.join(parts)} ms" if parts else ""


def _barge_in(event: Mapping[str, Any]) -> str:
    names = {"duck_ms": "quieter", "cut_ms": "cut", "silence_ms": "silent", "ear_ms": "silent at the ear"}
    parts = [f"{name} after {event[key]:.0f}" for key, name in names.items() if event.get(key) is not None]
    return f"barge-in: {', '.join(parts)} ms"
