"""A small trigram language model out of example sentences, in the ARPA format that recognisers read.

Interpolated Witten-Bell smoothing (Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language
Modeling", 1998, section 2.4). T(h) is how many different words were seen after a history h; a history that goes on in
many ways is likely to go on in a new one, so

    P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h))         h' = h without its first word

down to P(w) over the words seen and P = 1 / V below that. It needs no held-out text and no counts of counts, which a
few dozen sentences do not have. The weight for backing off from h is T(h) / (c(h) + T(h)).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

Gram: TypeAlias = tuple[str, ...]

START = "<s>"
END = "</s>"
_NO_CHANCE = -99.0  # the ARPA format's customary log10 of nothing: a sentence never begins in its middle

_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*'?")


def sentences(corpus: str) -> list[list[str]]:
    """Return the lower-case words of a text, one sentence a line or up to `.`, `!` or `?`."""
    found = (_WORD.findall(part.lower().replace("’", "'")) for part in re.split(r"[.!?]+(?=\s|$)|\n", corpus))
    return [words for words in found if words]


def build_arpa(text: Iterable[list[str]]) -> str:
    """Return a trigram model of the sentences as an ARPA file.

    Raises:
        ValueError: there are no sentences.
    """
    counts: tuple[Counter[Gram], ...] = (Counter(), Counter(), Counter())
    for sentence in text:
        padded = (START, *sentence, END)
        for order, grams in enumerate(counts, start=1):
            grams.update(padded[at : at + order] for at in range(len(padded) - order + 1))
    if not counts[0]:
        raise ValueError("a language model needs at least one sentence, got none")
    del counts[0][(START,)]
    chances, backoffs = _smooth(counts)
    lines = ["\\data\\", f"ngram 1={len(chances[0]) + 1}", f"ngram 2={len(chances[1])}", f"ngram 3={len(chances[2])}"]
    for order, known in enumerate(chances, start=1):
        lines += ["", f"\\{order}-grams:"]
        if order == 1:
            lines.append(_line((START,), _NO_CHANCE, backoffs))
        lines += [_line(gram, math.log10(chance), backoffs) for gram, chance in sorted(known.items())]
    return "\n".join([*lines, "", "\\end\\", ""])


def _smooth(
    counts: tuple[Counter[Gram], ...],
) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Return the chance of each gram of each order, and the weight of backing off from each history."""
    chances: list[dict[Gram, float]] = []
    backoffs: dict[Gram, float] = {}
    for grams in counts:
        seen: Counter[Gram] = Counter()
        kinds: Counter[Gram] = Counter()
        for gram, count in grams.items():
            seen[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        shorter: dict[Gram, float] = chances[-1] if chances else {(): 1 / len(grams)}
        chances.append(
            {
                gram: (count + kinds[gram[:-1]] * shorter[gram[1:]]) / (seen[gram[:-1]] + kinds[gram[:-1]])
                for gram, count in grams.items()
            }
        )
        backoffs |= {history: kinds[history] / (seen[history] + kinds[history]) for history in seen if history}
    return chances, backoffs


def _line(gram: Gram, log10_chance: float, backoffs: dict[Gram, float]) -> str:
    words = " ".join(gram)
    backoff = backoffs.get(gram)
    return f"{log10_chance:.4f} {words}" + (f" {math.log10(backoff):.4f}" if backoff else "")
