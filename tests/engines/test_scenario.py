"""The reading and checking of a scenario's file."""

import copy
from pathlib import Path
from typing import Any

import pytest

from media_server.engines.scenario import Scenario, read_scenario
from media_server.errors import ConfigError

COFFEE = Path(__file__).parents[2] / "config" / "scenarios" / "coffee.toml"


@pytest.fixture(scope="module")
def coffee() -> Scenario:
    return read_scenario(COFFEE)


def broken(tmp_path: Path, found: str, replacement: str) -> str:
    """Return what is said of the coffee scenario with one place changed."""
    text = COFFEE.read_text(encoding="utf-8")
    assert found in text
    path = tmp_path / "broken.toml"
    path.write_text(text.replace(found, replacement, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_scenario(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("found", "replacement", "said"),
    [
        ("greeting =", "greting =", "[the file]: unknown name 'greting'; did you mean 'greeting'?"),
        ("quantities = [", "quantites = [", "[words]: unknown name 'quantites'; did you mean 'quantities'?"),
        ("required = true", "requird = true", "[slots.size]: unknown name 'requird'; did you mean 'required'?"),
        ("required = true", "required = 1", "[slots.size.required]: found 1, wanted true or false"),
        ('default = "medium"', 'default = "medum"', "[slots.size] default: found 'medum'; did you mean 'medium'?"),
        ('default = "medium"', "default = 3", "[slots.size.default]: found 3, wanted a text"),
        (
            'place = "before"',
            'place = "infront"',
            "[slots.size] place: found 'infront', wanted one of before, head, with",
        ),
        ('place = "head"', 'place = "with"', "[slots]: exactly one is required, asks and has place 'head', found []"),
        ("done = [", "finished = [", "[intents]: unknown name 'finished'"),
        ("[answers.hello]", "[answers.cancel]", "[answers.cancel]: 'cancel' is an intent of the engine's own"),
        ("{item}?", "{drink}?", "has ['drink'], wanted {item} or no field at all"),
        ("{items}, got it.", "{items, got it.", "[lines.taken]: '{items, got it.'"),
        ('more = ["Anything else?"', 'more = ["Is that right then?"', "begins like one of"),
        ('start = ["What can I get you?"', "start = [", "wanted a list"),
        ("a = 1", "a = 0", "[words.counts.a]: found 0, wanted a number from 1"),
        ('links = ["with"]', 'links = ["With"]', "the phrase 'With' can never be heard"),
        ('links = ["with"]', 'links = ["latte"]', "the phrase 'latte' means both"),
        ('politeness = ["please"]', "", "[words]: 'politeness' is missing"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_its_place(
    tmp_path: Path, found: str, replacement: str, said: str
) -> None:
    if said == "wanted a list":
        replacement = "start = 3 #"
    assert said in broken(tmp_path, found, replacement)


def test_a_scenario_that_is_not_toml_or_not_there_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("greeting = ", encoding="utf-8")

    with pytest.raises(ConfigError, match="not TOML"):
        read_scenario(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match=r"missing\.toml: the scenario cannot be read"):
        read_scenario(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("heard", "kind"),
    [
        ("Hi, welcome to the coffee bar! What can I get you?", "start"),
        ("Sure, a latte. Small, medium or large for the latte?", "slot:size"),
        ("Sure, a latte. Small, medium or", "slot:size"),
        ("Sure, a latte. Small,", None),
        ("Okay. Would you like milk or sugar?", "offer"),
        ("What would you like to drink?", "start"),
        ("So that's a large latte. Is that right?", "confirm"),
        ("So that's a large latte. Is", None),
        ("", None),
    ],
)
def test_a_question_counts_as_asked_once_its_first_three_words_were_heard(
    coffee: Scenario, heard: str, kind: str | None
) -> None:
    assert coffee.find_question(heard) == kind


def test_reading_twice_gives_the_same_grammar(coffee: Scenario) -> None:
    assert read_scenario(COFFEE).grammar() == coffee.grammar()


def test_of_a_message_without_end_only_the_beginning_is_read(coffee: Scenario) -> None:
    assert coffee.understand("mumble " * 100 + "a latte").slots == {"drink": "latte"}
    assert coffee.understand("mumble " * 10_000 + "a latte").slots == {}


def test_what_is_understood_is_not_shared_between_sentences(coffee: Scenario) -> None:
    first: Any = copy.deepcopy(coffee.understand("a large latte"))
    coffee.understand("a small tea")

    assert coffee.understand("a large latte") == first
