"""A language model out of a few sentences: its chances add up, and what was said is likelier than what was not."""

import math

import pytest

from media_server.engines.trigram import build_arpa, sentences

CORPUS = "a tea please\na coffee please\ntwo teas"


class Arpa:
    """Reads an ARPA file as a recogniser does: the longest gram that is known, with the weight of backing off."""

    def __init__(self, text: str) -> None:
        self.chances: dict[tuple[str, ...], float] = {}
        self.backoffs: dict[tuple[str, ...], float] = {}
        order = 0
        for line in text.splitlines():
            if line.endswith("-grams:"):
                order = int(line[1])
            elif line and order and not line.startswith("\\"):
                fields = line.split()
                gram = tuple(fields[1 : 1 + order])
                self.chances[gram] = 10 ** float(fields[0])
                if len(fields) > 1 + order:
                    self.backoffs[gram] = 10 ** float(fields[-1])

    def chance(self, history: tuple[str, ...], word: str) -> float:
        """Return P(word | history)."""
        if (*history, word) in self.chances:
            return self.chances[(*history, word)]
        return self.backoffs.get(history, 1.0) * self.chance(history[1:], word)


def test_the_chances_after_any_history_add_up_to_one() -> None:
    arpa = Arpa(build_arpa(sentences(CORPUS)))
    followers = ["a", "tea", "please", "coffee", "two", "teas", "</s>"]

    for history in [(), ("<s>",), ("a",), ("<s>", "a"), ("a", "tea"), ("two", "teas"), ("please", "two")]:
        assert math.isclose(sum(arpa.chance(history, word) for word in followers), 1, abs_tol=0.002), history


def test_a_seen_bigram_has_the_chance_that_witten_and_bell_give_it() -> None:
    # "a" was seen twice, before 2 different words; "tea" is 1 of 11 tokens (with the ends) of 7 kinds.
    p_tea = (1 + 7 * (1 / 7)) / (11 + 7)

    arpa = Arpa(build_arpa(sentences(CORPUS)))

    assert arpa.chance(("a",), "tea") == pytest.approx((1 + 2 * p_tea) / (2 + 2), rel=1e-3)


def test_what_was_said_is_likelier_than_what_was_not() -> None:
    arpa = Arpa(build_arpa(sentences(CORPUS)))

    assert arpa.chance(("<s>", "a"), "tea") > 5 * arpa.chance(("<s>", "a"), "teas")


def test_the_head_counts_the_grams() -> None:
    text = build_arpa(sentences("a tea"))

    assert text.splitlines()[:4] == ["\\data\\", "ngram 1=4", "ngram 2=3", "ngram 3=2"]


def test_sentences_end_at_lines_and_at_full_stops_and_lose_their_signs() -> None:
    found = sentences("I’d like a tea. Two, please!\n\nNot e.g. at 10.30 o'clock?")

    assert found[0] == ["i'd", "like", "a", "tea"]
    assert found[1] == ["two", "please"]
    assert "10.30" in found[-1]
    assert "o'clock" in found[-1]


def test_a_model_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        build_arpa([])
