"""A barge-in: the ear and the memory at once, then the work."""

import asyncio

from media_server.conversation import SpokenMessage, Transcript
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedUtterance
from media_server.events import (
    BargeInMeasured,
    CallStarted,
    CancelReply,
    CreateReply,
    ItemTruncated,
    LevelsMeasured,
    PlayoutCleared,
    PlayoutDucked,
    PlayoutStarted,
    PlayoutStopped,
    ReplyDone,
    Settings,
    SpeechStarted,
    TranscriptCompleted,
    TranscriptGuessed,
    TruncateItem,
    TurnDetection,
    TurnMeasured,
    WordsSpoken,
)
from media_server.session.reply import Stopwatch
from tests.session.scene import Scene, calling, configured, scripted
from tests.virtual_time import run_virtual

LONG = "One two three four five six seven eight nine ten. " + "And so on. " * 10
"""Ten seconds of speech at 250 ms a word: longer than the playout holds."""


async def begin_a_long_reply(scene: Scene) -> float:
    """Let the caller ask and the agent speak; return when its first packet was heard."""
    await scene.stage.say(1.0)
    return scene.stage.time_of(await scene.stage.wait(PlayoutStarted))


def test_speech_during_a_reply_ducks_it_then_cuts_it() -> None:
    async def main() -> tuple[list[tuple[float, int]], BargeInMeasured]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            began_s = asyncio.get_running_loop().time()
            await scene.stage.say(1.0)
            measured = await scene.stage.wait(BargeInMeasured)
            heard = [(at_s - began_s, loud) for at_s, loud in scene.stage.heard if -0.1 <= at_s - began_s < 0.6]
            return heard, measured

    heard, measured = run_virtual(main())

    assert all(loud == 1000 for at_s, loud in heard if at_s < 0)
    ducked = [at_s for at_s, loud in heard if 200 < loud < 300]  # -12 dB of 1000 is 251
    silent = [at_s for at_s, loud in heard if loud == 0]
    assert 0 < ducked[0] < 0.1
    assert 0.12 < silent[0] < 0.2
    assert all(loud == 0 for at_s, loud in heard if at_s >= silent[0])
    assert measured.duck_ms is not None
    assert 20 <= measured.duck_ms <= 80
    assert 100 <= measured.cut_ms <= 180
    assert measured.cut_ms <= measured.silence_ms <= measured.cut_ms + 21
    assert measured.ear_ms == measured.silence_ms + 20  # half of the 40 ms that the transport reports


def test_only_what_was_heard_is_remembered_and_told() -> None:
    async def main() -> tuple[str, ItemTruncated, ReplyDone | None]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            began_s = await begin_a_long_reply(scene)
            await scene.stage.wait_until(lambda: asyncio.get_running_loop().time() - began_s > 1.05)
            await scene.stage.say(1.0)
            truncated = await scene.stage.wait(ItemTruncated)
            reply = scene.session.conversation.find(truncated.item_id)
            assert isinstance(reply, SpokenMessage)
            done = scene.stage.all(ReplyDone)[0] if scene.stage.all(ReplyDone) else None
            return reply.text, truncated, done

    remembered, truncated, done = run_virtual(main())

    # 250 ms a word; cut about 1.05 + 0.15 s after the first packet: four words have ended.
    assert remembered == "One two three four"
    assert truncated.heard == remembered
    assert 1150 <= truncated.audio_end_ms <= 1250
    assert done is not None
    assert (done.status, done.reason) == ("cancelled", "turn_detected")
    item = done.items[0]
    assert isinstance(item, SpokenMessage)
    assert item.text == remembered


def test_a_cut_is_told_in_the_order_of_the_protocol() -> None:
    async def main() -> list[str]:
        async with calling(scripted(llm=ScriptedLlm([[LONG], ["Sorry?"]]))) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            before = len(scene.stage.names(LevelsMeasured, WordsSpoken, TurnMeasured, TranscriptGuessed))
            await scene.stage.say(1.0)
            await scene.stage.wait(ReplyDone, 2)
            return scene.stage.names(LevelsMeasured, WordsSpoken, TurnMeasured, TranscriptGuessed)[before:]

    assert run_virtual(main())[:8] == [
        "PlayoutDucked",
        "SpeechStarted",
        "PlayoutCleared",
        "ItemTruncated",
        "ReplyItemDone",
        "ReplyDone",
        "BargeInMeasured",
        "SpeechStopped",
    ]


def test_a_cough_ducks_the_reply_and_lets_it_come_back() -> None:
    async def main() -> tuple[list[bool], int, int, list[str]]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            await scene.stage.say(0.06)
            await scene.stage.wait(PlayoutStopped)
            ducks = [each.ducked for each in scene.stage.all(PlayoutDucked)]
            ends = [str(each.status) for each in scene.stage.all(ReplyDone)]
            louds = [loud for _, loud in scene.stage.heard if loud]
            return ducks, len(scene.stage.all(SpeechStarted)), louds[-1], ends

    ducks, started, last_loud, ends = run_virtual(main())

    assert ducks == [True, False]
    assert started == 1  # the caller's question alone
    assert last_loud == 1000
    assert ends == ["completed"]


def test_a_recognised_word_cuts_before_the_speech_is_clear() -> None:
    words = ((60.0, Transcript(stable="", tail="stop")),)
    asr = ScriptedAsr(["tell me all", ScriptedUtterance(final="stop", partials=words)])

    async def main() -> tuple[int, str]:
        config = configured(barge_in__cut_ms="2000")
        async with calling(scripted(asr=asr, llm=ScriptedLlm([[LONG]])), config=config) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            await scene.stage.say(0.4)
            completed = await scene.stage.wait(TranscriptCompleted, 2)
            return len(scene.stage.all(PlayoutCleared)), completed.text

    assert run_virtual(main()) == (1, "stop")


def test_a_model_that_does_not_let_go_does_not_hold_the_call() -> None:
    llm = ScriptedLlm([["One two three four. ", 5.0, "Five six."], ["At your service."]], close_delay_s=3.0)

    async def main() -> tuple[float, list[tuple[str, str]]]:
        async with calling(scripted(llm=llm)) as scene:
            await begin_a_long_reply(scene)
            await scene.stage.say(0.5)
            cut_s = scene.stage.time_of(await scene.stage.wait(PlayoutCleared))
            second_s = scene.stage.time_of(await scene.stage.wait(PlayoutStarted, 2))
            await scene.stage.wait(PlayoutStopped)
            return second_s - cut_s, scene.texts()

    wait_s, texts = run_virtual(main())

    assert wait_s < 1.2  # the caller's speech and the endpointing; not the model's 3 s
    assert texts[-1] == ("assistant", "At your service.")


def test_a_slow_voice_cannot_speak_after_the_cut() -> None:
    tts = ScriptedTts(chunk_delay_s=0.02, close_delay_s=0.3)

    async def main() -> list[int]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]), tts=tts)) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(0.5)
            await scene.stage.say(0.3)
            cut_s = scene.stage.time_of(await scene.stage.wait(PlayoutCleared))
            await scene.stage.wait(TranscriptCompleted, 2)
            return [loud for at_s, loud in scene.stage.heard if cut_s < at_s < cut_s + 0.4]

    assert set(run_virtual(main())) == {0}


def test_a_reply_that_may_not_be_interrupted_is_heard_to_its_end() -> None:
    settings = Settings(turn_detection=TurnDetection(interrupt=False))
    asr = ScriptedAsr(["first", "second"])

    async def main() -> tuple[list[str], list[tuple[str, str]]]:
        llm = ScriptedLlm([[LONG], ["And now to your second question."]])
        async with calling(scripted(asr=asr, llm=llm), settings=settings) as scene:
            await begin_a_long_reply(scene)
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped, 2)
            return [str(done.status) for done in scene.stage.all(ReplyDone)], scene.texts()

    ends, texts = run_virtual(main())

    assert ends == ["completed", "completed"]
    assert texts[-1] == ("assistant", "And now to your second question.")


def test_a_client_cancels_a_reply_and_it_falls_silent() -> None:
    async def main() -> tuple[str | None, int]:
        async with calling(scripted(llm=ScriptedLlm([[LONG, 3.0, "more"]]))) as scene:
            await begin_a_long_reply(scene)
            scene.stage.ask(CancelReply())
            done = await scene.stage.wait(ReplyDone)
            await asyncio.sleep(0.1)
            return done.reason, scene.stage.heard[-1][1]

    assert run_virtual(main()) == ("client_cancelled", 0)


def test_a_client_that_played_less_truncates_the_memory() -> None:
    async def main() -> tuple[str, str]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            await begin_a_long_reply(scene)
            await scene.stage.wait(PlayoutStopped)
            reply = list(scene.session.conversation)[-1]
            scene.stage.ask(TruncateItem(item_id=reply.id, audio_end_ms=600))
            truncated = await scene.stage.wait(ItemTruncated)
            changed = scene.session.conversation.find(reply.id)
            assert isinstance(changed, SpokenMessage)
            return changed.text, truncated.heard

    assert run_virtual(main()) == ("One two", "One two")


def test_a_noise_that_silenced_the_agent_is_answered() -> None:
    asr = ScriptedAsr(["tell me all", ""])

    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(asr=asr, llm=ScriptedLlm([[LONG], ["Where were we?"]]))) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            await scene.stage.say(0.2)
            await scene.stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main())[-1] == ("assistant", "Where were we?")


def test_a_reply_that_ends_while_it_is_ducked_leaves_no_duck_behind() -> None:
    config = configured(barge_in__words_cut="false")
    llm = ScriptedLlm([["One two three four."], [LONG]])

    async def main() -> tuple[list[bool], BargeInMeasured]:
        async with calling(scripted(llm=llm), config=config) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(0.93)
            await scene.stage.say(0.06)
            await scene.stage.wait(PlayoutStopped)
            ducks = [each.ducked for each in scene.stage.all(PlayoutDucked)]
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStarted, 2)
            await asyncio.sleep(0.5)
            await scene.stage.say(1.0)
            return ducks, await scene.stage.wait(BargeInMeasured)

    ducks, measured = run_virtual(main())

    assert ducks == [True, False]
    assert measured.cut_ms < 200


def test_a_short_silence_that_ends_turns_still_brings_a_ducked_reply_back() -> None:
    settings = Settings(turn_detection=TurnDetection(silence_ms=200))

    async def main() -> list[bool]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]])), settings=settings) as scene:
            await begin_a_long_reply(scene)
            await asyncio.sleep(1.0)
            await scene.stage.say(0.02)
            await asyncio.sleep(1.0)
            return [each.ducked for each in scene.stage.all(PlayoutDucked)]

    assert run_virtual(main()) == [True, False]


def test_speech_silences_a_reply_beside_the_conversation_too() -> None:
    async def main() -> tuple[list[str], int]:
        async with calling(scripted(llm=ScriptedLlm([[LONG, 9.0, "more"], ["Yes?"]]))) as scene:
            scene.stage.ask(CreateReply(in_conversation=False))
            await scene.stage.wait(PlayoutStarted)
            await scene.stage.say(1.0)
            await scene.stage.wait(PlayoutStopped)
            ends = [str(each.reason) for each in scene.stage.all(ReplyDone)]
            return ends, len(scene.stage.all(PlayoutCleared))

    assert run_virtual(main()) == (["turn_detected", "None"], 1)


def test_a_reply_that_is_cut_before_its_first_step_still_ends() -> None:
    async def main() -> tuple[float, bool]:
        async with calling(scripted(llm=ScriptedLlm([["At last."]]))) as scene:
            await scene.stage.wait(CallStarted)
            scene.session.replies.answer(Settings(), Stopwatch())
            scene.session.replies.cut("turn_detected")
            scene.session.replies.answer(Settings(), Stopwatch())
            await scene.stage.wait(PlayoutStopped)
            await asyncio.sleep(2.0)
            return scene.metrics.snapshot()["replies_stuck_total"], scene.texts() == [("assistant", "At last.")]

    assert run_virtual(main()) == (0.0, True)
