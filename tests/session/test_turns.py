"""A turn: the caller speaks, is answered, and what the client is told of it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from media_server.audio.chunk import AudioChunk
from media_server.conversation import SpokenMessage, Transcript
from media_server.engines.protocols import Finished, Hints, ToolCallDelta
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedUtterance
from media_server.errors import EngineError
from media_server.events import (
    AddItem,
    CallStarted,
    CreateReply,
    ErrorHappened,
    ItemAdded,
    LevelsMeasured,
    PlayoutStarted,
    PlayoutStopped,
    ReplyDone,
    ReplyStarted,
    ReplyTextGrew,
    Settings,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptFailed,
    TranscriptGrew,
    TranscriptGuessed,
    TurnDetection,
    TurnMeasured,
    WordsSpoken,
)
from tests.session.scene import calling, configured, scripted
from tests.virtual_time import run_virtual


def test_a_turn_is_told_in_the_order_of_the_protocol() -> None:
    async def main() -> list[str]:
        async with calling(scripted()) as scene:
            await scene.stage.wait(CallStarted)
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            return scene.stage.names(LevelsMeasured, WordsSpoken, TurnMeasured, TranscriptGuessed)

    assert run_virtual(main()) == [
        "CallStarted",
        "SpeechStarted",
        "SpeechStopped",
        "SoundCommitted",
        "ItemAdded",
        "TranscriptGrew",
        "TranscriptCompleted",
        "ReplyStarted",
        "ReplyItemAdded",
        "ReplyTextGrew",
        "ReplyItemDone",
        "ReplyDone",
        "PlayoutStarted",
        "PlayoutStopped",
    ]


def test_the_conversation_holds_what_both_sides_said() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted()) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main()) == [("user", "hello there"), ("assistant", "Good morning to you.")]


def test_speech_is_placed_on_the_clock_of_the_sound() -> None:
    async def main() -> tuple[int, int]:
        async with calling(scripted()) as scene:
            await scene.stage.say(0.0)
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 50)
            await scene.stage.say(1.0)
            stopped = await scene.stage.wait(SpeechStopped)
            return scene.stage.all(SpeechStarted)[0].audio_start_ms, stopped.audio_end_ms

    started_ms, ended_ms = run_virtual(main())

    assert 968 <= started_ms <= 1032  # packet 50 is at 1000 ms; a window is 32 ms
    assert 1968 <= ended_ms <= 2064


def test_the_latency_of_a_turn_is_the_sum_of_its_stages() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="hello", final_delay_s=0.1)])
    llm = ScriptedLlm([[0.2, "Yes."]])
    tts = ScriptedTts(first_chunk_delay_s=0.05)

    async def main() -> TurnMeasured:
        async with calling(scripted(asr=asr, llm=llm, tts=tts)) as scene:
            await scene.stage.say(1.0)
            return await scene.stage.wait(TurnMeasured)

    latency = run_virtual(main()).latency

    assert latency.endpointing_ms is not None
    assert latency.first_packet_ms is not None
    assert latency.voice_to_voice_ms is not None
    assert 480 <= latency.endpointing_ms <= 560  # 500 ms of silence, in windows of 32 ms and packets of 20 ms
    assert round(latency.asr_final_ms or 0) == 100
    assert round(latency.llm_first_token_ms or 0) == 200
    assert round(latency.tts_first_audio_ms or 0) == 50
    assert 350 <= latency.first_packet_ms <= 372  # the three, and the way to the next packet
    assert round(latency.voice_to_voice_ms) == round(latency.endpointing_ms + latency.first_packet_ms)


def test_only_stable_words_are_deltas_and_the_tail_is_a_guess() -> None:
    partials = (
        (400.0, Transcript(stable="", tail="a larch")),
        (600.0, Transcript(stable="a large", tail="lot")),
    )
    asr = ScriptedAsr([ScriptedUtterance(final="a large latte", partials=partials)])

    async def main() -> tuple[list[str], list[tuple[str, str]], str]:
        async with calling(scripted(asr=asr)) as scene:
            await scene.stage.say(1.0)
            completed = await scene.stage.wait(TranscriptCompleted)
            deltas = [each.delta for each in scene.stage.all(TranscriptGrew)]
            guesses = [(each.stable, each.tail) for each in scene.stage.all(TranscriptGuessed)]
            return deltas, guesses, completed.text

    deltas, guesses, text = run_virtual(main())

    assert deltas == ["a large", " latte"]
    assert guesses == [("", "a larch"), ("a large", "lot")]
    assert text == "a large latte"


def test_a_click_is_no_turn() -> None:
    async def main() -> list[SpeechStarted]:
        async with calling(scripted()) as scene:
            await scene.stage.say(0.06)
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 100)
            return scene.stage.all(SpeechStarted)

    assert run_virtual(main()) == []


def test_an_utterance_without_words_is_not_answered_unless_it_was_long() -> None:
    async def main(seconds: float) -> int:
        async with calling(scripted(asr=ScriptedAsr([""]))) as scene:
            await scene.stage.say(seconds)
            await scene.stage.wait(TranscriptCompleted)
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 200)
            return len(scene.stage.all(ReplyStarted))

    assert run_virtual(main(0.3)) == 0
    assert run_virtual(main(1.2)) == 1


def test_a_caller_who_goes_on_before_the_answer_is_heard_out() -> None:
    llm = ScriptedLlm([[1.0, "Too early."], ["In time."]])
    asr = ScriptedAsr(["i would like", "a latte"])

    async def main() -> tuple[list[tuple[str, str]], list[str], int]:
        async with calling(scripted(asr=asr, llm=llm)) as scene:
            await scene.stage.say(0.6)
            await scene.stage.wait(ReplyStarted)
            await scene.stage.say(0.6)
            await scene.stage.wait(PlayoutStopped)
            ends = [str(done.status) for done in scene.stage.all(ReplyDone)]
            return scene.texts(), ends, llm.records.closed

    texts, ends, closed = run_virtual(main())

    assert texts == [("user", "i would like"), ("user", "a latte"), ("assistant", "In time.")]
    assert ends == ["cancelled", "completed"]
    assert closed == 1


def test_a_typed_line_is_answered_in_the_same_conversation() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted()) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            typed = SpokenMessage(id="item_typed", role="user", modality="text", written="And to you.")
            scene.stage.ask(AddItem(item=typed))
            scene.stage.ask(CreateReply())
            await scene.stage.wait(PlayoutStopped, 2)
            return scene.texts()

    assert run_virtual(main()) == [
        ("user", "hello there"),
        ("assistant", "Good morning to you."),
        ("user", "And to you."),
        ("assistant", "Good morning to you."),
    ]


def test_a_text_reply_makes_no_sound() -> None:
    tts = ScriptedTts()

    async def main() -> tuple[list[str], int]:
        async with calling(scripted(tts=tts), settings=Settings(modalities=("text",))) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(ReplyDone)
            return [each.delta for each in scene.stage.all(ReplyTextGrew)], max(loud for _, loud in scene.stage.heard)

    assert run_virtual(main()) == (["Good morning to you."], 0)
    assert tts.records.all == []


def test_text_is_shown_before_it_is_spoken() -> None:
    llm = ScriptedLlm([["One. ", "Two. ", "Three."]])

    async def main() -> tuple[float, float]:
        async with calling(scripted(llm=llm, tts=ScriptedTts(first_chunk_delay_s=1.0))) as scene:
            await scene.stage.say(1.0)
            last = await scene.stage.wait(WordsSpoken, 3)
            grew = scene.stage.all(ReplyTextGrew)
            assert "".join(each.delta for each in grew) == "One. Two. Three."
            return scene.stage.time_of(grew[-1]), scene.stage.time_of(last)

    shown_s, spoken_s = run_virtual(main())

    assert spoken_s - shown_s > 3.0


def test_the_agent_greets_first_and_the_caller_may_come_before_it() -> None:
    async def main(speaks_at_once: bool) -> list[tuple[str, str]]:
        async with calling(scripted(greeting="Welcome!")) as scene:
            if speaks_at_once:
                await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main(False)) == [("assistant", "Welcome!")]
    assert run_virtual(main(True)) == [("user", "hello there"), ("assistant", "Good morning to you.")]


def test_a_model_that_fails_costs_a_reply_and_says_so_aloud() -> None:
    llm = ScriptedLlm([[EngineError("the model is gone")], ["Here I am again."]])

    async def main() -> tuple[list[str], list[tuple[str, str]], bool]:
        async with calling(scripted(llm=llm)) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            apology_heard = any(loud for _, loud in scene.stage.heard)
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped, 2)
            return [str(done.status) for done in scene.stage.all(ReplyDone)], scene.texts(), apology_heard

    ends, texts, apology_heard = run_virtual(main())

    assert ends == ["failed", "completed"]
    assert texts[1] == ("assistant", "Sorry, something went wrong on my side. Please say that again.")
    assert texts[3] == ("assistant", "Here I am again.")
    assert apology_heard


def test_a_voice_that_fails_leaves_the_text() -> None:
    async def main() -> tuple[ReplyDone, str]:
        async with calling(scripted(tts=ScriptedTts(fails_on="morning"))) as scene:
            await scene.stage.say(1.0)
            done = await scene.stage.wait(ReplyDone)
            return done, "".join(each.delta for each in scene.stage.all(ReplyTextGrew))

    done, shown = run_virtual(main())

    assert (done.status, done.reason) == ("failed", "engine_failed")
    assert shown == "Good morning to you."


def test_a_recogniser_that_fails_is_apologised_for() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="", failure=EngineError("deaf")), "hello there"])

    async def main() -> tuple[str, list[tuple[str, str]]]:
        async with calling(scripted(asr=asr)) as scene:
            await scene.stage.say(1.0)
            failed = await scene.stage.wait(TranscriptFailed)
            await scene.stage.wait(PlayoutStopped)
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped, 2)
            return failed.code, scene.texts()

    code, texts = run_virtual(main())

    assert code == "engine_failed"
    assert texts[1] == ("assistant", "Sorry, something went wrong on my side. Please say that again.")
    assert texts[2:] == [("user", "hello there"), ("assistant", "Good morning to you.")]


def test_a_recogniser_that_hangs_is_given_up() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="too late", final_delay_s=30.0)])

    async def main() -> str:
        async with calling(scripted(asr=asr), config=configured(asr__final_timeout_s="2")) as scene:
            await scene.stage.say(1.0)
            return (await scene.stage.wait(TranscriptFailed)).code

    assert run_virtual(main()) == "asr_timeout"
    assert asr.records.closed == 1


def test_a_second_reply_is_refused_while_one_is_being_made() -> None:
    llm = ScriptedLlm([[5.0, "Slow."]])

    async def main() -> ErrorHappened:
        async with calling(scripted(llm=llm)) as scene:
            scene.stage.ask(CreateReply())
            scene.stage.ask(CreateReply(event_id="mine"))
            return await scene.stage.wait(ErrorHappened)

    error = run_virtual(main())

    assert error.code == "conversation_already_has_active_response"
    assert error.event_id == "mine"


def test_a_caller_who_says_goodbye_ends_the_call() -> None:
    async def main() -> str:
        async with calling(scripted()) as scene:
            await scene.stage.wait(CallStarted)
            scene.stage.leave()
            return await scene.over

    assert run_virtual(main()) == "the caller hung up"


def test_a_call_in_which_nobody_speaks_ends() -> None:
    async def main() -> str:
        async with calling(scripted(), config=configured(call__idle_timeout_s="30")) as scene:
            return await scene.over

    assert run_virtual(main()) == "nobody spoke"


def test_a_thousand_commands_of_one_client_cannot_fill_the_inbox() -> None:
    async def main() -> int:
        async with calling(scripted()) as scene:
            for n in range(1000):
                item = SpokenMessage(id=f"item_{n}", role="user", modality="text", written="x")
                scene.stage.ask(AddItem(item=item))
            await scene.stage.wait(ItemAdded, 1000)
            return len(scene.session.conversation)

    assert run_virtual(main()) == 1000


def test_a_channel_that_comes_when_the_call_is_over_is_too_late() -> None:
    async def main() -> None:
        async with calling(scripted()) as scene:
            scene.session.hang_up("enough")
            await scene.over
            scene.session.attach_channel(scene.stage)

    run_virtual(main())


class DeafAsr(ScriptedAsr):
    """Fails on its first utterance as soon as it hears something."""

    async def transcribe(self, audio: AsyncIterator[AudioChunk], hints: Hints) -> AsyncGenerator[Transcript, None]:
        """Fail once."""
        if not self.records.all:
            with self.records.keep(hints):
                await anext(audio)
                raise EngineError("deaf")
        async with aclosing(super().transcribe(audio, hints)) as transcripts:
            async for transcript in transcripts:
                yield transcript


def test_a_recogniser_that_fails_while_the_caller_speaks_is_apologised_for_when_they_have_finished() -> None:
    async def main() -> tuple[list[str], list[tuple[str, str]]]:
        async with calling(scripted(asr=DeafAsr(["hello there"]))) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            names = scene.stage.names()
            order = sorted(("SpeechStopped", "TranscriptFailed", "ReplyStarted"), key=names.index)
            return order, scene.texts()

    order, texts = run_virtual(main())

    assert order == ["SpeechStopped", "TranscriptFailed", "ReplyStarted"]
    assert texts[-1] == ("assistant", "Sorry, something went wrong on my side. Please say that again.")


def test_a_question_is_answered_though_a_noise_comes_before_its_words() -> None:
    asr = ScriptedAsr([ScriptedUtterance(final="what is it", final_delay_s=0.4), ""])

    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(asr=asr)) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(SpeechStopped)
            await scene.stage.say(0.3)
            await scene.stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main())[-1] == ("assistant", "Good morning to you.")


def test_a_question_that_waited_is_answered_once() -> None:
    settings = Settings(turn_detection=TurnDetection(interrupt=False))
    asr = ScriptedAsr(["first", "second", "third"])
    llm = ScriptedLlm([["One two three four five six."], ["Both."], ["UNASKED."]])

    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(asr=asr, llm=llm), settings=settings) as scene:
            await scene.stage.say(0.5)
            await scene.stage.wait(PlayoutStarted)
            await scene.stage.say(0.4)
            await scene.stage.wait(TranscriptCompleted, 2)
            await scene.stage.say(1.0)  # as the reply ends
            await scene.stage.wait(PlayoutStopped, 2)
            await asyncio.sleep(5.0)
            return scene.texts()

    assert [text for role, text in run_virtual(main()) if role == "assistant"] == [
        "One two three four five six.",
        "Both.",
    ]


def test_a_voice_that_fails_lets_the_model_finish() -> None:
    llm = ScriptedLlm([["First one. ", 0.5, "Second one. ", 0.5, "Third one."]])

    async def main() -> str:
        async with calling(scripted(llm=llm, tts=ScriptedTts(fails_on="First"))) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(ReplyDone)
            return scene.texts()[-1][1]

    assert run_virtual(main()) == "First one. Second one. Third one."


def test_a_failed_reply_says_sorry_and_not_where_the_model_lives() -> None:
    llm = ScriptedLlm([[EngineError("cannot reach http://10.0.0.5:8000/v1")]])

    async def main() -> str | None:
        async with calling(scripted(llm=llm)) as scene:
            await scene.stage.say(1.0)
            return (await scene.stage.wait(ReplyDone)).message

    assert run_virtual(main()) == "Sorry, something went wrong on my side. Please say that again."


@pytest.mark.parametrize("end", [EngineError("torn off"), Finished("length")])
def test_half_a_tool_call_is_not_told(end: EngineError | Finished) -> None:
    half = ToolCallDelta(call_id="call_1", name="order", arguments='{"drink": "lat')

    async def main() -> tuple[str, list[str]]:
        async with calling(scripted(llm=ScriptedLlm([[half, end]]))) as scene:
            await scene.stage.say(1.0)
            done = await scene.stage.wait(ReplyDone)
            return done.status, [type(item).__name__ for item in done.items]

    status, items = run_virtual(main())

    assert status in ("failed", "incomplete")
    assert "FunctionCall" not in items


def test_a_call_does_not_end_for_idleness_while_the_agent_speaks() -> None:
    long = "One two three four five six seven eight nine ten. " * 5

    async def main() -> str:
        config = configured(call__idle_timeout_s="5")
        async with calling(scripted(llm=ScriptedLlm([[long]])), config=config) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            return scene.texts()[-1][1]

    assert run_virtual(main()) == long


def test_words_are_kept_to_ourselves_where_nobody_wants_to_see_them() -> None:
    async def main() -> tuple[list[str], list[tuple[str, str]]]:
        async with calling(scripted(), settings=Settings(transcribe=False)) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            return scene.stage.names(), scene.texts()

    names, texts = run_virtual(main())

    assert not {"TranscriptGrew", "TranscriptGuessed", "TranscriptCompleted"} & set(names)
    assert texts[0] == ("user", "hello there")


def test_hanging_up_often_hangs_up_once() -> None:
    llm = ScriptedLlm([["One two three four. ", 5.0, "Five."]], close_delay_s=2.0)

    async def main() -> str:
        async with calling(scripted(llm=llm)) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStarted)
            scene.session.hang_up("enough")
            await asyncio.sleep(0.1)
            for _ in range(300):
                scene.session.hang_up("again")
            return await scene.over

    assert run_virtual(main()) == "enough"
