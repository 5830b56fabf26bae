"""The scripted engines do what their scripts say, in the loop's own time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

import numpy as np
import pytest

from media_server.audio.chunk import HEARING_HZ, AudioChunk, silence
from media_server.conversation import Transcript, Usage, Word
from media_server.engines.protocols import (
    Asr,
    Finished,
    Hints,
    Llm,
    LlmRequest,
    SpeechChunk,
    TextDelta,
    ToolCallDelta,
    Tts,
    Vad,
    Voice,
)
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedUtterance, ScriptedVad
from media_server.errors import EngineError
from tests.virtual_time import run_virtual

T = TypeVar("T")
VOICE = Voice()
REQUEST = LlmRequest(items=())


async def collect(results: AsyncGenerator[T, None]) -> list[tuple[float, T]]:
    """Return each result with the loop's time."""
    clock = asyncio.get_running_loop().time
    start_s = clock()
    async with aclosing(results):
        return [(round(clock() - start_s, 3), each) async for each in results]


async def spoken(milliseconds: int) -> AsyncIterator[AudioChunk]:
    for pts in range(0, milliseconds * 16, 320):
        yield AudioChunk(silence(320), HEARING_HZ, pts)


def test_every_scripted_engine_is_what_its_protocol_asks() -> None:
    vad: Vad = ScriptedVad()
    asr: Asr = ScriptedAsr(["hello"])
    llm: Llm = ScriptedLlm([["Hello."]])
    tts: Tts = ScriptedTts()

    assert [engine.name for engine in (vad, asr, llm, tts)] == ["scripted"] * 4


async def test_the_vad_follows_its_script_anew_for_each_call() -> None:
    vad = ScriptedVad([0.1, 0.9])
    one, other = vad.open(), vad.open()

    heard = [await one.probability(silence(512)) for _ in range(3)]

    assert heard == [0.1, 0.9, 0.0]
    assert await other.probability(silence(512)) == 0.1


async def test_without_a_script_loud_sound_is_speech() -> None:
    stream = ScriptedVad(threshold=500).open()
    loud = silence(512)
    loud[100] = -32_768

    assert await stream.probability(silence(512)) == 0.0
    assert await stream.probability(loud) == 1.0


async def test_the_vad_refuses_a_window_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"shape \(512,\), got \(320,\)"):
        await ScriptedVad().open().probability(silence(320))


async def test_partials_come_with_the_sound_and_then_the_final() -> None:
    partials = ((50, Transcript(stable="", tail="turn")), (100, Transcript(stable="turn", tail="on")))
    asr = ScriptedAsr([ScriptedUtterance(final="turn on the lamp", partials=partials)])
    hints = Hints(language="en")

    async with aclosing(asr.transcribe(spoken(200), hints)) as results:
        heard = [each async for each in results]

    assert [(each.text, each.final, each.end_pts) for each in heard] == [
        ("turn", False, 960),
        ("turn on", False, 1600),
        ("turn on the lamp", True, 3200),
    ]
    assert asr.records.asked == [hints]
    assert asr.records.finished == 1
    assert asr.heard_samples == [3200]


def test_a_final_takes_its_time() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="yes", final_delay_s=0.3)])

    results = run_virtual(collect(asr.transcribe(spoken(20), Hints())))

    assert [at_s for at_s, _ in results] == [0.3]


async def test_utterances_come_in_order_and_start_over() -> None:
    asr = ScriptedAsr(["one", "two"])

    heard = [(await collect(asr.transcribe(spoken(20), Hints())))[0][1].text for _ in range(3)]

    assert heard == ["one", "two", "one"]


async def test_an_utterance_may_fail() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="", failure=EngineError("deaf"))])

    with pytest.raises(EngineError, match="deaf"):
        await collect(asr.transcribe(spoken(20), Hints()))
    assert asr.records.failed == 1


async def test_a_recogniser_that_is_closed_early_says_so() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="yes", partials=((20, Transcript(stable="y")),))])

    async with aclosing(asr.transcribe(spoken(100), Hints())) as results:
        await anext(results)

    assert (asr.records.closed, asr.records.finished) == (1, 0)


def test_a_reply_is_given_step_by_step() -> None:
    call = ToolCallDelta(call_id="call_1", name="lamp", arguments="{}")
    llm = ScriptedLlm([["Wait ", 0.5, "please.", 1.0, call, Usage(input_tokens=3, output_tokens=2)], ["Done."]])

    first = run_virtual(collect(llm.reply(REQUEST)))
    second = run_virtual(collect(llm.reply(REQUEST)))

    assert first == [
        (0.0, TextDelta("Wait ")),
        (0.5, TextDelta("please.")),
        (1.5, call),
        (1.5, Usage(input_tokens=3, output_tokens=2)),
        (1.5, Finished("tool_calls")),
    ]
    assert [each for _, each in second] == [TextDelta("Done."), Finished("stop")]
    assert llm.records.asked == [REQUEST, REQUEST]
    assert llm.records.finished == 2


async def test_a_reply_may_give_its_own_end() -> None:
    results = await collect(ScriptedLlm([["Once upon", Finished("length")]]).reply(REQUEST))

    assert [each for _, each in results] == [TextDelta("Once upon"), Finished("length")]


async def test_a_reply_may_fail_in_the_middle() -> None:
    llm = ScriptedLlm([["Half a ", EngineError("the model is gone")]])
    deltas = llm.reply(REQUEST)

    assert await anext(deltas) == TextDelta("Half a ")
    with pytest.raises(EngineError, match="the model is gone"):
        await anext(deltas)
    assert (llm.records.failed, llm.records.closed) == (1, 0)


def test_a_cancelled_reply_is_counted_and_takes_its_time_to_end() -> None:
    llm = ScriptedLlm([["Hello ", 10.0, "there."]], close_delay_s=2.0)

    async def cancel_after_one_second() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(collect(llm.reply(REQUEST)))
        await asyncio.sleep(1.0)
        running = llm.records.running
        task.cancel()
        await asyncio.wait([task])
        return running, loop.time()

    running, ended_s = run_virtual(cancel_after_one_second())

    assert running == 1
    assert (llm.records.running, llm.records.closed) == (0, 1)
    assert ended_s == pytest.approx(3.0, abs=0.01)


def test_speech_comes_in_chunks_with_the_times_of_its_words() -> None:
    tts = ScriptedTts(rate_hz=8000, ms_per_word=150, chunk_ms=100, first_chunk_delay_s=0.2, chunk_delay_s=0.01)

    results = run_virtual(collect(tts.speak("Hello there.", VOICE)))

    assert [(at_s, len(chunk.pcm)) for at_s, chunk in results] == [(0.2, 800), (0.21, 800), (0.22, 800)]
    assert [chunk.words for _, chunk in results] == [(Word("Hello", 0, 150),), (Word("there.", 150, 300),), ()]
    assert all(np.all(chunk.pcm != 0) for _, chunk in results)
    assert tts.records.asked[0].text == "Hello there."
    assert tts.records.finished == 1


async def test_long_words_may_take_longer_and_a_fast_voice_takes_less() -> None:
    tts = ScriptedTts(ms_per_character=50)

    chunks: list[SpeechChunk] = [each for _, each in await collect(tts.speak("to London", Voice(speed=2.0)))]

    assert [word for chunk in chunks for word in chunk.words] == [Word("to", 0, 50), Word("London", 50, 200)]


async def test_a_text_without_words_makes_no_speech() -> None:
    tts = ScriptedTts()

    assert await collect(tts.speak(" ", VOICE)) == []
    assert tts.records.finished == 1


async def test_a_voice_may_fail_on_a_text() -> None:
    tts = ScriptedTts(fails_on="xyzzy")

    with pytest.raises(EngineError, match="no speech for 'xyzzy'"):
        await collect(tts.speak("say xyzzy", VOICE))
    assert tts.records.failed == 1


async def test_a_voice_that_is_closed_early_says_so() -> None:
    tts = ScriptedTts()

    async with aclosing(tts.speak("one two three", VOICE)) as chunks:
        await anext(chunks)

    assert tts.records.closed == 1


def test_an_empty_script_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one utterance"):
        ScriptedAsr([])
    with pytest.raises(ValueError, match="at least one reply"):
        ScriptedLlm([])
