"""How far a text has been read aloud: joins the word times of a voice with the characters of the text."""

from collections.abc import Iterable
from dataclasses import dataclass

from media_server.conversation import Word


@dataclass(frozen=True, slots=True)
class SpokenTo:
    """After `at_ms` of the piece's speech, the first `n_chars` characters of the whole text have been spoken."""

    at_ms: int
    n_chars: int


class Reading:
    """One piece of text while it is read aloud."""

    def __init__(self, text: str, start: int) -> None:
        """Begin to follow `text`, which stands at character `start` of the whole."""
        self._text = text
        self._start = start
        self._at = 0
        self.timed = False

    def follow(self, words: Iterable[Word]) -> list[SpokenTo]:
        """Return how far the text is spoken at the end of each word. A word that is not in the text is passed over."""
        marks: list[SpokenTo] = []
        for word in words:
            found = self._text.find(word.text.strip(), self._at)
            if found < 0 or not word.text.strip():
                continue
            self.timed = True
            self._at = found + len(word.text.strip())
            marks.append(SpokenTo(word.end_ms, self._start + self._at))
        return marks

    def guess(self, duration_ms: int) -> list[SpokenTo]:
        """Return an estimate for a voice without word times: each character takes the same time."""
        marks: list[SpokenTo] = []
        at = 0
        for word in self._text.split():
            at = self._text.index(word, at) + len(word)
            marks.append(SpokenTo(duration_ms * at // max(1, len(self._text)), self._start + at))
        return marks

    def end(self, duration_ms: int) -> SpokenTo:
        """Return the mark of the whole piece."""
        return SpokenTo(duration_ms, self._start + len(self._text))
