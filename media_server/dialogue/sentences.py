"""Cuts a stream of text into pieces that a voice can speak: sentences, and for the first piece a clause, so that the
voice begins early.

Marks that are not spoken (Markdown's) become spaces, one for one, so that every position in a piece is one in the text.
"""

import re
from dataclasses import dataclass

_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|\n+""")
_CLAUSE = re.compile(r"[,;:–—](?=\s)")
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|no|approx)|\b[A-Za-z])\.$", re.IGNORECASE)
_LOOK_BACK = 7  # the longest of them, and the character before it
_UNSPOKEN = str.maketrans(dict.fromkeys("*_#`~|<>", " "))


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to say. `text` is what stands in the whole at `start`, but for marks that are not spoken."""

    text: str
    start: int


class Sentences:
    """The pieces of one reply.

    Attributes:
        first_clause_chars: the first piece may end at a comma once it is that long.
        max_chars: a piece is cut at a space before it gets longer.
    """

    def __init__(self, *, first_clause_chars: int = 24, max_chars: int = 240) -> None:
        self._first_clause_chars = first_clause_chars
        self._max_chars = max_chars
        self._rest = ""
        self._start = 0
        self._first = True

    def push(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are complete by now."""
        self._rest += text
        pieces: list[Piece] = []
        while (end := self._find_end()) is not None:
            pieces += self._take(end)
        return pieces

    def flush(self) -> list[Piece]:
        """Return what is left at the end of the text."""
        pieces = self.push(" ") if self._rest else []
        return pieces + self._take(len(self._rest))

    def _find_end(self) -> int | None:
        window = self._rest[: self._max_chars + 1]  # with the character after, which the marks look at
        for match in _END.finditer(window):
            dot = match.start()
            if match.group().startswith(".") and _ABBREVIATION.search(window[max(0, dot - _LOOK_BACK) : dot + 1]):
                continue
            if window[: match.start()].strip():
                return match.end()
        if self._first:
            for match in _CLAUSE.finditer(window):
                if match.start() >= self._first_clause_chars:
                    return match.end()
        if len(self._rest) > self._max_chars:
            space = self._rest.rfind(" ", 1, self._max_chars)
            return space if space > 0 else self._max_chars
        return None

    def _take(self, end: int) -> list[Piece]:
        raw, self._rest = self._rest[:end], self._rest[end:]
        start = self._start
        self._start += end
        spoken = raw.translate(_UNSPOKEN)
        lead = len(spoken) - len(spoken.lstrip())
        text = spoken.strip()
        if not any(character.isalnum() for character in text):
            return []
        self._first = False
        return [Piece(text, start + lead)]
