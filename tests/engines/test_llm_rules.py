"""The embedded agent as an engine: streaming, cutting, and any words at all."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_server.conversation import FunctionOutput, Item, SpokenMessage
from media_server.engines.llm_rules import RulesLlm
from media_server.engines.protocols import Finished, Llm, LlmRequest, TextDelta
from media_server.engines.scenario import read_scenario
from media_server.errors import ConfigError, EngineError
from tests.engines.replying import reply_to

COFFEE = Path(__file__).parents[2] / "config" / "scenarios" / "coffee.toml"
SCENARIO = read_scenario(COFFEE)


def caller(text: str | None) -> SpokenMessage:
    return SpokenMessage(id="c", role="user", modality="audio", written=text)


def agent(text: str, heard: str | None = None) -> SpokenMessage:
    return SpokenMessage(id="a", role="assistant", modality="audio", written=text, heard=heard)


async def load() -> RulesLlm:
    llm = RulesLlm(scenario=COFFEE)
    await llm.load()
    return llm


async def read_reply(llm: Llm, *items: Item, **limits: Any) -> tuple[str, Finished]:
    deltas = [delta async for delta in llm.reply(LlmRequest(items=items, **limits))]
    finished = deltas.pop()
    assert isinstance(finished, Finished)
    texts = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
    assert len(texts) == len(deltas)
    assert all(len(text.split()) == 1 for text in texts)
    return "".join(texts), finished


async def test_a_reply_comes_word_by_word_and_then_finishes() -> None:
    text, finished = await read_reply(await load(), caller("a large tea with milk"))

    assert text == "Sure, a large tea with milk. Anything else for you?"
    assert finished == Finished("stop")


async def test_a_reply_is_as_long_as_it_may_be() -> None:
    text, finished = await read_reply(await load(), caller("a large tea with milk"), max_tokens=3)

    assert text == "Sure, a large"
    assert finished == Finished("length")


async def test_a_reply_may_be_closed_in_its_middle() -> None:
    llm = await load()

    async with aclosing(llm.reply(LlmRequest(items=()))) as deltas:
        first = await anext(deltas)

    assert first == TextDelta("Hi,")


async def test_before_the_caller_speaks_the_agent_greets_and_then_asks() -> None:
    llm = await load()

    assert (await read_reply(llm))[0] == llm.greeting
    assert (await read_reply(llm, agent(llm.greeting)))[0] == "What can I get you?"


async def test_without_words_from_the_caller_the_open_question_comes_again() -> None:
    text, _ = await read_reply(await load(), caller("a latte"), agent("Sure, a latte."))

    assert text.endswith("for the latte?")


async def test_words_that_are_still_being_recognised_are_no_words() -> None:
    text, _ = await read_reply(await load(), caller(None))

    assert "hear you" in text or "catch that" in text


ORDERED = caller("a large tea with milk")


@pytest.mark.parametrize(
    ("heard", "reply"),
    [
        (None, "Thank you!"),
        ("So that's a large tea with milk. Is that right", "Thank you!"),
        ("So that's a large", "Is that"),
        ("", "Is that"),
    ],
)
def test_a_yes_confirms_only_if_the_question_was_heard(heard: str | None, reply: str) -> None:
    items = (
        ORDERED,
        agent("A large tea with milk, got it."),
        caller("that's all"),
        agent("So that's a large tea with milk. Is that right?", heard),
        caller("yes"),
    )

    assert reply in reply_to(SCENARIO, items)


def test_a_reply_that_was_never_heard_loses_nothing_of_the_order() -> None:
    cut = agent("Sure, a large tea with milk. Anything else?", "")

    assert "a large tea with milk" in reply_to(SCENARIO, (ORDERED, cut, caller("that's all")))


def test_what_is_neither_said_nor_heard_changes_nothing() -> None:
    tool = FunctionOutput(id="f", call_id="1", output="a small mocha")
    system = SpokenMessage(id="s", role="system", modality="text", written="a small mocha")

    assert reply_to(SCENARIO, (system, tool, ORDERED)) == reply_to(SCENARIO, (ORDERED,))


async def test_a_conversation_without_end_lets_others_work_while_it_is_replayed() -> None:
    llm = await load()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    async with aclosing(llm.reply(LlmRequest(items=(caller("a large latte please " * 40),) * 200))) as deltas:
        await anext(deltas)
    turns_before_the_first_word = turns
    counting.cancel()
    await asyncio.wait([counting])

    assert turns_before_the_first_word > 3


def test_a_question_is_found_at_the_end_of_a_text_of_any_length() -> None:
    assert SCENARIO.find_question("what can i get you? " + "x " * 500) is None
    assert SCENARIO.find_question("x " * 30_000 + ". What can I get you") == "start"


async def test_an_engine_that_is_not_loaded_says_so() -> None:
    llm = RulesLlm(scenario=COFFEE)
    await llm.close()

    with pytest.raises(EngineError, match="is not loaded"):
        await read_reply(llm)


async def test_a_missing_scenario_is_found_at_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        await RulesLlm(scenario=tmp_path / "none.toml").load()


def test_the_line_for_the_log_names_the_scenario() -> None:
    assert "coffee" in RulesLlm(scenario=COFFEE).why


WORDS = sorted({word for slot in SCENARIO.vocabulary.slots.values() for word in slot.phrases})
WORDS += [phrase for phrases in SCENARIO.vocabulary.intents.values() for phrase in phrases]
WORDS += ["and", "a", "two", "the", "no", "without", "remove the", "both", "with", ",", "", "’", "12oz"]
LINE = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))


@given(lines=st.lists(st.tuples(LINE, st.integers(0, 120)), max_size=6))
def test_whatever_is_said_and_however_it_is_cut_there_is_a_reply(lines: list[tuple[str, int]]) -> None:
    items: list[Item] = []
    for line, heard_chars in lines:
        items.append(caller(line))
        reply = reply_to(SCENARIO, tuple(items))
        items.append(agent(reply, reply[:heard_chars]))

        assert reply[-1] in ".!?"
        assert "{" not in reply
        assert "  " not in reply
        assert ": ." not in reply
        assert reply_to(SCENARIO, tuple(items))[-1] in ".!?"
