"""When does the caller speak, and when have they finished? Time here is sound received, in samples at 16 kHz.

The ear feeds one probability a window. An utterance passes milestones, each told once:

    SpeechNoticed    duck_ms of speech      something; a reply is ducked
    SpeechLikely     onset_ms of speech     a turn, if nobody else is speaking; recognition begins
    SpeechClear      cut_ms of speech       the caller means it; a reply is cut
    SpeechFaded      release_ms of silence, and never clear: it was a cough
    SpeechEnded      silence_ms of silence after it was likely

Speech is counted in windows above the threshold; shorter gaps than release_ms do not take back what was counted.
"""

from dataclasses import dataclass
from typing import TypeAlias

from media_server.audio.chunk import HEARING_HZ

_SAMPLES_A_MS = HEARING_HZ // 1000


@dataclass(frozen=True, slots=True)
class SpeechNoticed:
    """A first stretch of what may be speech, beginning at `start_pts`."""

    start_pts: int


@dataclass(frozen=True, slots=True)
class SpeechLikely:
    """It went on: probably speech."""

    start_pts: int


@dataclass(frozen=True, slots=True)
class SpeechClear:
    """It is speech, and meant for us."""

    start_pts: int


@dataclass(frozen=True, slots=True)
class SpeechFaded:
    """It was nothing: too short, then silence."""

    start_pts: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The caller has finished; the last window of speech ended at `end_pts`."""

    start_pts: int
    end_pts: int
    speech_ms: int


Milestone: TypeAlias = SpeechNoticed | SpeechLikely | SpeechClear | SpeechFaded | SpeechEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointingRules:
    """What counts as speech, and how much of it; `config/default.toml` has the reasons."""

    threshold: float
    release_threshold: float
    notice_ms: int
    onset_ms: int
    clear_ms: int
    release_ms: int
    silence_ms: int
    max_utterance_ms: int


class Endpointing:
    """The milestones of one caller's utterances."""

    def __init__(self, rules: EndpointingRules) -> None:
        self.rules = rules
        self._passed = 0  # milestones of the utterance under way
        self._faded = False
        self._in_speech = False
        self._speech_samples = 0
        self._start_pts = 0
        self._last_pts = 0

    @property
    def speaking(self) -> bool:
        """Return whether an utterance that is likely speech is under way."""
        return self._passed >= 2

    def window(self, probability: float, start_pts: int, end_pts: int) -> list[Milestone]:
        """Take one window of sound and return the milestones that it passes, in order."""
        if self._is_speech(probability):
            return self._speech(start_pts, end_pts)
        return self._silence(end_pts)

    def end(self) -> list[Milestone]:
        """End an utterance under way by force, as if the silence had been long enough."""
        ended: list[Milestone] = []
        if self._passed >= 2:
            ended = [SpeechEnded(self._start_pts, self._last_pts, self._speech_samples // _SAMPLES_A_MS)]
        self._forget()
        return ended

    def _is_speech(self, probability: float) -> bool:
        # Within speech the lower threshold holds, so that a weak consonant does not end a word.
        limit = self.rules.release_threshold if self._passed and self._in_speech else self.rules.threshold
        return probability >= limit

    def _speech(self, start_pts: int, end_pts: int) -> list[Milestone]:
        if self._speech_samples == 0:
            self._start_pts = start_pts
        self._in_speech = True
        self._speech_samples += end_pts - start_pts
        self._last_pts = end_pts
        passed: list[Milestone] = []
        steps = (
            (self.rules.notice_ms, SpeechNoticed),
            (self.rules.onset_ms, SpeechLikely),
            (self.rules.clear_ms, SpeechClear),
        )
        while self._passed < len(steps):
            needed_ms, milestone = steps[self._passed]
            if self._speech_samples < needed_ms * _SAMPLES_A_MS:
                break
            passed.append(milestone(self._start_pts))
            self._passed += 1
        if end_pts - self._start_pts >= self.rules.max_utterance_ms * _SAMPLES_A_MS:
            passed += self.end()
        return passed

    def _silence(self, end_pts: int) -> list[Milestone]:
        self._in_speech = False
        if self._speech_samples == 0:
            return []
        silent_ms = (end_pts - self._last_pts) // _SAMPLES_A_MS
        if self._passed < 2:
            if silent_ms < self.rules.release_ms:
                return []
            faded: list[Milestone] = [SpeechFaded(self._start_pts)] if self._passed else []
            self._forget()
            return faded
        if self._passed == 2 and not self._faded and silent_ms >= self.rules.release_ms:
            self._faded = True
            return [SpeechFaded(self._start_pts), *self._end_after(silent_ms)]
        return self._end_after(silent_ms)

    def _end_after(self, silent_ms: int) -> list[Milestone]:
        return self.end() if silent_ms >= self.rules.silence_ms else []

    def _forget(self) -> None:
        self._passed = 0
        self._faded = False
        self._in_speech = False
        self._speech_samples = 0
        self._start_pts = 0
        self._last_pts = 0
