"""Words settle after they have stayed the same for long enough, and never move again."""

import itertools

from media_server.engines.streaming_asr import Split, StableWords


def say(words: StableWords, partials: list[str], step_ms: int = 100) -> list[Split]:
    """Give partials one step apart, the first after one step."""
    return [words.update(text.split(), at * step_ms) for at, text in enumerate(partials, start=1)]


def test_a_word_is_stable_after_800_ms_of_sameness() -> None:
    splits = say(StableWords(), ["two"] * 9)

    assert splits[7] == Split("", "two")
    assert splits[8] == Split("two", "")


def test_the_time_is_that_of_the_sound_and_not_the_number_of_partials() -> None:
    words = StableWords()

    words.update(["two"], 100)

    assert words.update(["two"], 900) == Split("two", "")


def test_a_word_that_changes_begins_anew_and_so_do_those_after_it() -> None:
    words = StableWords(stable_after_ms=300)

    splits = say(words, ["a large tee", "a large tea", "a large tea", "a large tea", "a large tea"])

    assert splits[3] == Split("a large", "tea")
    assert splits[4] == Split("a large tea", "")


def test_a_word_is_not_stable_before_the_one_in_front_of_it_is() -> None:
    words = StableWords(stable_after_ms=300)

    splits = say(words, ["a small tea", "a tall tea", "a small tea", "a tall tea"])

    assert splits[3] == Split("a", "tall tea")


def test_what_is_stable_does_not_change_when_a_later_partial_disagrees() -> None:
    words = StableWords(stable_after_ms=200)

    splits = say(
        words, ["two teas", "two teas", "two teas", "to tease me", "to tease me", "to tease me", "to tease me"]
    )

    assert splits[2] == Split("two teas", "")
    assert splits[3] == Split("two teas", "me")
    assert splits[6] == Split("two teas", "me")


def test_what_is_stable_does_not_shrink_when_a_later_partial_is_shorter() -> None:
    words = StableWords(stable_after_ms=200)

    splits = say(words, ["two teas", "two teas", "two teas", "two", ""])

    assert splits[3] == Split("two teas", "")
    assert splits[4] == Split("two teas", "")


def test_growth_goes_on_once_the_partials_agree_with_the_stable_words_again() -> None:
    words = StableWords(stable_after_ms=200)

    splits = say(words, ["two", "two", "two", "to me", "two teas", "two teas", "two teas"])

    assert splits[3] == Split("two", "me")
    assert splits[6] == Split("two teas", "")


def test_the_stable_text_only_ever_grows() -> None:
    partials = ["a", "a b", "a b", "x b", "a b c", "a b c", "a", "a b c d", "a b c d", "a b c d", "a b c d", ""]

    stable = [split.stable for split in say(StableWords(stable_after_ms=200), partials)]

    assert all(after.startswith(before) for before, after in itertools.pairwise(stable))
    assert stable[-1] == "a b c d"
