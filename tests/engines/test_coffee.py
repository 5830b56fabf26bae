"""The coffee bar: what is understood, what is said, and whether a recogniser can hear it."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pocketsphinx
import pytest

from media_server.conversation import Item, SpokenMessage
from media_server.engines.scenario import Scenario, read_scenario
from tests.engines.replying import reply_to

COFFEE = Path(__file__).parents[2] / "config" / "scenarios" / "coffee.toml"
SPEECH = Path(os.environ.get("PARLEY_SPEECH", Path(__file__).parents[3] / "shared" / "speech"))


@pytest.fixture(scope="module")
def coffee() -> Scenario:
    return read_scenario(COFFEE)


def talk(scenario: Scenario, *lines: str) -> list[str]:
    """Say the lines one after the other, each reply heard whole, and return the replies."""
    items: list[Item] = [message(0, "assistant", scenario.greeting)]
    replies = []
    for line in lines:
        items.append(message(len(items), "user", line))
        replies.append(reply_to(scenario, tuple(items)))
        items.append(message(len(items), "assistant", replies[-1]))
    return replies


def message(n: int, role: Any, text: str) -> SpokenMessage:
    return SpokenMessage(id=f"item_{n}", role=role, modality="audio", written=text)


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("a latte", {"drink": "latte"}),
        ("A LARGE latte, oat milk please!", {"size": "large", "drink": "latte", "milk": "oat milk"}),
        ("12oz espresso", {"size": "twelve ounce", "drink": "espresso"}),
        ("a 16-ounce tea", {"size": "sixteen ounce", "drink": "tea"}),
        ("can I get two capuccinos", {"drink": "cappuccino"}),
        (
            "can i get a large medium roast double shot iced mocha with whole milk and a little bit of brown sugar",
            {
                "size": "large",
                "roast": "medium roast",
                "shots": "double shot",
                "drink": "iced mocha",
                "milk": "whole milk",
                "sugar": "a little bit of brown sugar",
            },
        ),
        ("medium dark roast coffee", {"size": "medium", "roast": "dark roast", "drink": "coffee"}),
        ("double espresso", {"shots": "double shot", "drink": "espresso"}),
        ("without sugar", {"sugar": "no sugar"}),
        ("i don’t want any milk", {"milk": "no milk"}),
        ("a hot chocolate with whipped cream", {"drink": "hot chocolate", "extras": "whipped cream"}),
        ("tea with two sugars and soy", {"drink": "tea", "sugar": "two sugars", "milk": "soy milk"}),
        ("tell me about the weather", {}),
        ("", {}),
    ],
)
def test_a_sentence_fills_the_slots_that_it_names(coffee: Scenario, text: str, slots: dict[str, str]) -> None:
    assert coffee.understand(text).slots == slots


@pytest.mark.parametrize(
    ("text", "intents"),
    [
        ("yes please", ("yes",)),
        ("no", ("no",)),
        ("No, that's all, thanks.", ("no", "done", "thanks")),
        ("no sugar", ()),
        ("no make it large", ("no", "correct")),
        ("cancel the order", ("cancel",)),
        ("what did i order", ("summary",)),
        ("hello", ("hello",)),
        ("bye bye", ("goodbye",)),
    ],
)
def test_a_sentence_shows_what_the_caller_intends(coffee: Scenario, text: str, intents: tuple[str, ...]) -> None:
    assert coffee.understand(text).intents == intents


# The caller's lines, and the order as it is read back at the end of the last reply.
ORDERS = [
    (["a large latte with oat milk", "that's all"], "a large latte with oat milk"),
    (["an eight ounce latte with milk", "that's all"], "an eight ounce latte with milk"),
    (["a latte", "large", "no", "no"], "a large latte"),
    (["large with oat milk", "a mocha", "that's all"], "a large mocha with oat milk"),
    (["a small tea and a large mocha with cream", "no"], "a small tea and a large mocha with cream"),
    (["a large latte with sugar and an espresso", "small", "no"], "a large latte with sugar and a small espresso"),
    (["a latte with milk and sugar and large tea", "small", "no"], "a small latte with milk and sugar and a large tea"),
    (["a latte, oat milk, and a large espresso", "big", "no"], "a large latte with oat milk and a large espresso"),
    (["large latte small espresso", "no", "no"], "a large latte and a small espresso"),
    (["a small tea", "and another one with honey a large one", "no"], "a large tea with honey"),
    (["two large lattes with soy", "no"], "two large lattes with soy milk"),
    (["a large tea", "make that two", "that's all"], "two large teas"),
    (["a small tea with milk", "make it large", "no"], "a large tea with milk"),
    (["a small tea with milk", "actually oat milk", "no"], "a small tea with oat milk"),
    (["a small tea with milk", "without milk", "no"], "a small tea"),
    (["a small tea with whole milk", "no oat milk", "that's all"], "a small tea with oat milk"),
    (["a small tea with whole milk", "that's all", "no, a mocha"], "a small mocha with whole milk"),
    (["a small latte with soy", "not a latte a flat white", "no"], "a small flat white with soy milk"),
    (["a small tea with milk", "and an espresso", "large", "remove the tea", "no", "no"], "a large espresso"),
    (["a latte and a mocha", "both large", "that's it"], "a large latte and a large mocha"),
    (["a latte and a mocha", "small", "large", "done that's all"], "a small latte and a large mocha"),
    (["a latte", "a large latte", "that's it"], "a large latte"),
    (["a latte", "whatever", "no thanks", "no thanks"], "a medium latte"),
    (["a small tea with milk", "make the tea a large", "no"], "a large tea with milk"),
    (["a small mocha with vanilla and caramel", "no caramel", "no"], "a small mocha with vanilla syrup"),
    (["a large tea", "yes", "two sugars", "nothing else"], "a large tea with two sugars"),
    (["a large tea with milk", "cancel", "a small mocha with cream", "no"], "a small mocha with cream"),
    (["a small tea with milk", "no", "yes", "actually make it large"], "a large tea with milk"),
    (["a small tea with milk", "no", "yes and a large mocha"], "a small tea with milk and a large mocha"),
    (["hello", "help", "a small tea", "mumble", "no", "mumble", "no"], "a small tea"),
]


@pytest.mark.parametrize(("lines", "order"), ORDERS)
def test_the_order_is_read_back_as_it_was_meant(coffee: Scenario, lines: list[str], order: str) -> None:
    last = talk(coffee, *lines)[-1]

    assert re.search(rf"(?:So that's|I have) {order}\. Is that", last), last


# The caller's lines, and a part of the last reply.
REPLIES = [
    (["hello"], "drink?|get you?"),
    (["a latte"], "for the latte?"),
    (["a large latte"], "milk or sugar?"),
    (["a large latte with soy milk"], "Anything else"),
    (["a large latte", "yes"], "Which milk"),
    (["a large latte with soy milk", "yes"], "What else"),
    (["large"], "drink"),
    (["a large latte with milk", "no", "yes"], "Thank you!"),
    (["a large latte with milk", "no", "no"], "change?"),
    (["a large latte with milk", "no", "yes", "yes"], "on its way|is in"),
    (["a large latte with milk", "no", "how much is it"], "counter"),
    (["a large latte with milk", "what did i order"], "a large latte with milk."),
    (["what did i order"], "anything on your order|empty"),
    (["cancel"], "anything on your order|empty"),
    (["a large latte", "cancel that"], "cancelled"),
    (["a large latte with milk", "actually"], "change?"),
    (["a large latte with milk", "without milk"], "no milk."),
    (["a large latte with milk", "remove the latte"], "off"),
    (["a latte", "what did you say"], "for the latte?"),
    (["thanks"], "welcome|pleasure"),
    (["goodbye"], "Bye|Goodbye"),
    (["wait"], "time|rush"),
    (["", ""], "catch that|hear you"),
    (["a latte", "no"], "for the latte?"),
    (["yes"], "drink?|get you?"),
    (["that's all"], "drink?|get you?"),
]


@pytest.mark.parametrize(("lines", "parts"), REPLIES)
def test_the_reply_fits_what_was_said(coffee: Scenario, lines: list[str], parts: str) -> None:
    last = talk(coffee, *lines)[-1]

    assert any(part in last for part in parts.split("|")), last


@pytest.mark.parametrize("lines", [lines for lines, _ in ORDERS] + [lines for lines, _ in REPLIES])
def test_a_reply_asks_at_most_one_question_and_stays_short(coffee: Scenario, lines: list[str]) -> None:
    for reply in talk(coffee, *lines):
        assert reply.count("?") <= 1 or "could you say that again?" in reply, reply
        assert len(re.findall(r"[.!?]", reply)) <= 3, reply


def test_reprompts_vary(coffee: Scenario) -> None:
    replies = talk(coffee, "mumble", "mumble", "mumble")

    assert len({reply.split(".")[0] for reply in replies}) == 3


def read_grammar_words(scenario: Scenario) -> set[str]:
    text = re.sub(r"<[^>]*>|/[0-9.e-]+/", " ", scenario.grammar().split("grammar scenario;")[1])
    return set(re.findall(r"[a-z']+", text)) - {"public"}


def test_every_word_of_the_grammar_stands_in_the_recognisers_dictionary(coffee: Scenario) -> None:
    dictionary = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    known = {line.split(maxsplit=1)[0] for line in dictionary.read_text(encoding="utf-8").splitlines() if line}

    words = read_grammar_words(coffee)

    assert {"latte", "i'd", "sixteen"} <= words
    assert words - known == set()


def test_pocketsphinx_takes_the_grammar(coffee: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "coffee.jsgf"
    path.write_text(coffee.grammar(), encoding="utf-8")

    decoder = pocketsphinx.Decoder(jsgf=str(path), lm=None, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(bytes(32_000))
    decoder.end_utt()

    assert decoder.hyp() is None


LABELS = {
    "coffeeDrink": "drink",
    "size": "size",
    "roast": "roast",
    "numberOfShots": "shots",
    "milkAmount": "milk",
    "sugarAmount": "sugar",
}


def test_real_orders_in_writing_are_understood_as_people_labelled_them(coffee: Scenario) -> None:
    manifest = SPEECH / "manifest.jsonl"
    if not manifest.exists():
        pytest.skip(f"no recordings at {SPEECH}; set PARLEY_SPEECH")
    clips = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    orders = [clip for clip in clips if clip["set"] == "barista"]

    wrong = [
        clip["text"]
        for clip in orders
        if coffee.understand(clip["text"]).slots != {LABELS[label]: value for label, value in clip["slots"].items()}
    ]

    assert len(orders) == 45
    assert wrong == []
