"""Text cut into what a voice can speak."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_server.dialogue.sentences import Piece, Sentences


def pieces(*texts: str) -> list[str]:
    sentences = Sentences()
    return [piece.text for text in texts for piece in sentences.push(text)] + [
        piece.text for piece in sentences.flush()
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 3.50 today. Fine.", ["It costs 3.50 today.", "Fine."]),
        ("Dr. Who met Mr. X. at 5 p.m. today. Yes.", ["Dr. Who met Mr. X. at 5 p.m. today.", "Yes."]),
        ('He said "Stop." Then left.', ['He said "Stop."', "Then left."]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("Well… yes.", ["Well…", "yes."]),
        ("**Bold** and `code`.", ["Bold   and  code ."]),
        ("...", []),
        ("", []),
    ],
)
def test_text_is_cut_at_the_end_of_sentences(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_the_first_piece_of_a_stream_may_be_a_clause_and_the_others_not() -> None:
    text = "So that is one large iced mocha, with oat milk. And then a second sentence, which goes on, ends here."

    assert pieces(*(f"{word} " for word in text.split())) == [
        "So that is one large iced mocha,",
        "with oat milk.",
        "And then a second sentence, which goes on, ends here.",
    ]


def test_a_sentence_is_given_as_soon_as_the_next_begins() -> None:
    sentences = Sentences()

    assert sentences.push("Hello.") == []
    assert sentences.push(" ") == [Piece("Hello.", 0)]


def test_a_text_without_an_end_is_cut_at_a_space() -> None:
    cut = pieces("word " * 100)

    assert all(len(piece) <= 240 for piece in cut)
    assert " ".join(cut).split() == ["word"] * 100


@pytest.mark.parametrize("text", ["word " * 100 + "end. ", "a. " * 8000, "word " * 13_000, "x" * 5000])
def test_no_piece_of_one_large_delta_is_too_long(text: str) -> None:
    cut = pieces(text)

    assert max(len(piece) for piece in cut) <= 240
    assert "".join(cut).replace(" ", "") == text.replace(" ", "")


@given(st.lists(st.text(alphabet="ab .!?,*\n", max_size=30), max_size=20))
def test_every_piece_stands_in_the_text_where_it_says(texts: list[str]) -> None:
    sentences = Sentences(max_chars=40)
    whole = "".join(texts)
    cut = [piece for text in texts for piece in sentences.push(text)] + sentences.flush()

    spoken = whole.replace("*", " ")
    assert all(spoken[piece.start : piece.start + len(piece.text)] == piece.text for piece in cut)
    assert [piece.start for piece in cut] == sorted(piece.start for piece in cut)
    kept = "".join("".join(piece.text.split()) for piece in cut)
    assert [c for c in kept if c.isalnum()] == [c for c in spoken if c.isalnum()]
