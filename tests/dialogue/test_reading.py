"""How far a text has been read aloud."""

from media_server.conversation import Word
from media_server.dialogue.reading import Reading, SpokenTo


def test_each_word_is_spoken_to_its_end() -> None:
    reading = Reading("a tall, tall latte.", 100)

    first = reading.follow([Word("a", 0, 80), Word("tall,", 80, 300)])
    second = reading.follow([Word("tall", 300, 500), Word("latte.", 500, 900)])

    assert first == [SpokenTo(80, 101), SpokenTo(300, 107)]
    assert second == [SpokenTo(500, 112), SpokenTo(900, 119)]
    assert reading.timed


def test_a_word_that_is_not_in_the_text_is_passed_over() -> None:
    assert Reading("2 shots", 0).follow([Word("two", 0, 100), Word("shots", 100, 300)]) == [SpokenTo(300, 7)]


def test_without_word_times_each_character_takes_the_same_time() -> None:
    assert Reading("abcd efgh i", 10).guess(1100) == [SpokenTo(400, 14), SpokenTo(900, 19), SpokenTo(1100, 21)]


def test_the_end_is_the_whole_piece() -> None:
    assert Reading("abc.", 7).end(500) == SpokenTo(500, 11)
