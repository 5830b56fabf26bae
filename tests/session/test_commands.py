"""What a client asks of a call, and what is done about it."""

import asyncio

from media_server.conversation import SpokenMessage
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm
from media_server.events import (
    AddItem,
    CancelReply,
    ChangeSettings,
    ClearPlayout,
    ClearSound,
    CommitSound,
    CreateReply,
    DeleteItem,
    ErrorHappened,
    ItemAdded,
    ItemDeleted,
    ItemRetrieved,
    ItemTruncated,
    PlayoutCleared,
    PlayoutStarted,
    PlayoutStopped,
    ReplyDone,
    RetrieveItem,
    Settings,
    SettingsChanged,
    SoundCleared,
    SoundCommitted,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TruncateItem,
    TurnDetection,
)
from tests.session.scene import calling, scripted
from tests.virtual_time import run_virtual

LONG = "One two three four five six seven eight nine ten. " + "And so on. " * 10
MANUAL = Settings(turn_detection=None)


def typed(item_id: str, text: str = "Hi.") -> AddItem:
    return AddItem(item=SpokenMessage(id=item_id, role="user", modality="text", written=text))


def test_a_client_that_ends_its_turns_itself_commits_its_sound_and_asks_for_a_reply() -> None:
    asr = ScriptedAsr(["hello there"])

    async def main() -> tuple[list[str], list[tuple[str, str]], int]:
        async with calling(scripted(asr=asr), settings=MANUAL) as scene:
            await scene.stage.say(2.0)
            scene.stage.ask(CommitSound())
            await scene.stage.wait(TranscriptCompleted)
            await asyncio.sleep(2.0)
            unasked = scene.stage.names()
            scene.stage.ask(CreateReply())
            await scene.stage.wait(PlayoutStopped)
            return unasked, scene.texts(), asr.heard_samples[0]

    unasked, texts, heard_samples = run_virtual(main())

    assert not {"SpeechStarted", "ReplyStarted"} & set(unasked)
    assert texts == [("user", "hello there"), ("assistant", "Good morning to you.")]
    assert abs(heard_samples - 2 * 16_000) <= 640


def test_sound_that_was_cleared_is_not_committed() -> None:
    async def main() -> ErrorHappened:
        async with calling(scripted(), settings=MANUAL) as scene:
            await scene.stage.say(2.0)
            scene.stage.ask(ClearSound())
            scene.stage.ask(CommitSound(event_id="mine"))
            await scene.stage.wait(SoundCleared)
            return await scene.stage.wait(ErrorHappened)

    error = run_virtual(main())

    assert (error.code, error.event_id) == ("input_audio_buffer_commit_empty", "mine")


def test_a_commit_in_the_middle_of_a_turn_ends_it() -> None:
    async def main() -> int:
        async with calling(scripted()) as scene:
            scene.stage.speaking = True
            await scene.stage.wait(SpeechStarted)
            scene.stage.ask(CommitSound())
            stopped = await scene.stage.wait(SpeechStopped)
            scene.stage.speaking = False
            return stopped.audio_end_ms

    assert run_virtual(main()) < 300


def test_who_begins_to_end_turns_itself_in_the_middle_of_one_gives_it_up() -> None:
    async def main() -> tuple[list[str], bool, list[str]]:
        async with calling(scripted()) as scene:
            scene.stage.speaking = True
            await scene.stage.wait(SpeechStarted)
            scene.stage.ask(ChangeSettings(changes={"turn_detection": None}))
            await scene.stage.wait(SettingsChanged)
            names = scene.stage.names()
            speaking = scene.session.ear.speaking
            await asyncio.sleep(1.0)
            scene.stage.ask(CommitSound())
            await scene.stage.wait(SoundCommitted)
            scene.stage.ask(ChangeSettings(changes={"turn_detection": {}}))
            await scene.stage.wait(SettingsChanged, 2)
            await scene.stage.wait(SpeechStarted, 2)
            return names, speaking, scene.stage.names()

    names, speaking, later = run_virtual(main())

    assert names.index("SpeechStopped") < names.index("SettingsChanged")
    assert not speaking
    assert "ErrorHappened" not in later


def test_what_the_caller_is_saying_has_its_id_already() -> None:
    async def main() -> tuple[ErrorHappened, list[tuple[str, str]]]:
        async with calling(scripted()) as scene:
            scene.stage.speaking = True
            started = await scene.stage.wait(SpeechStarted)
            scene.stage.ask(typed(started.item_id))
            error = await scene.stage.wait(ErrorHappened)
            scene.stage.speaking = False
            await scene.stage.wait(PlayoutStopped)
            return error, scene.texts()

    error, texts = run_virtual(main())

    assert error.param == "item.id"
    assert texts[0] == ("user", "hello there")


def test_a_full_conversation_takes_no_more_until_something_is_deleted() -> None:
    async def main() -> tuple[ErrorHappened, int]:
        async with calling(scripted()) as scene:
            for n in range(20):
                scene.stage.ask(typed(f"item_{n}", "x" * 50_000))
            await scene.stage.wait(ItemAdded, 20)
            scene.stage.ask(typed("item_more"))
            error = await scene.stage.wait(ErrorHappened)
            scene.stage.ask(DeleteItem(item_id="item_0"))
            await scene.stage.wait(ItemDeleted)
            scene.stage.ask(typed("item_more"))
            await scene.stage.wait(ItemAdded, 21)
            return error, len(scene.session.conversation)

    error, n_items = run_virtual(main())

    assert error.code == "conversation_full"
    assert n_items == 20


def test_an_item_is_retrieved_and_one_that_is_not_there_is_refused() -> None:
    async def main() -> tuple[str, ErrorHappened]:
        async with calling(scripted()) as scene:
            scene.stage.ask(typed("item_1"))
            scene.stage.ask(RetrieveItem(item_id="item_1"))
            scene.stage.ask(RetrieveItem(item_id="item_2"))
            retrieved = await scene.stage.wait(ItemRetrieved)
            return retrieved.item.id, await scene.stage.wait(ErrorHappened)

    item_id, error = run_virtual(main())

    assert item_id == "item_1"
    assert (error.code, error.param) == ("item_not_found", "item_id")


def test_a_cleared_playout_is_silent_and_the_memory_is_cut() -> None:
    async def main() -> tuple[int, bool]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            scene.stage.ask(CreateReply())
            await scene.stage.wait(PlayoutStarted)
            await asyncio.sleep(1.0)
            scene.stage.ask(ClearPlayout())
            await scene.stage.wait(PlayoutCleared)
            await asyncio.sleep(0.1)
            return scene.stage.heard[-1][1], scene.texts()[-1][1] in ("One two three", "One two three four")

    assert run_virtual(main()) == (0, True)


def test_a_reply_beside_the_conversation_is_cancelled_at_the_ear_too() -> None:
    async def main() -> tuple[int, str | None]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            scene.stage.ask(CreateReply(in_conversation=False))
            started = await scene.stage.wait(PlayoutStarted)
            scene.stage.ask(CancelReply(reply_id=started.reply_id))
            await scene.stage.wait(PlayoutCleared)
            await asyncio.sleep(0.1)
            return scene.stage.heard[-1][1], scene.stage.all(ReplyDone)[0].reason

    heard, reason = run_virtual(main())

    assert heard == 0
    assert reason in ("client_cancelled", None)  # None: all of it was written before


def test_a_cancelled_reply_leaves_the_one_before_it_speaking() -> None:
    async def main() -> tuple[list[str], list[str]]:
        async with calling(scripted(llm=ScriptedLlm([["One two three four."], ["Never."]]))) as scene:
            scene.stage.ask(CreateReply())
            first = await scene.stage.wait(ReplyDone)
            scene.stage.ask(CreateReply())
            scene.stage.ask(CancelReply())
            await scene.stage.wait(ReplyDone, 2)
            stopped = await scene.stage.wait(PlayoutStopped)
            assert stopped.reply_id == first.reply_id
            ends = [str(each.status) for each in scene.stage.all(ReplyDone)]
            return ends, [text for _, text in scene.texts()]

    ends, texts = run_virtual(main())

    assert ends == ["completed", "cancelled"]
    assert texts[0] == "One two three four."


def test_a_second_truncation_cannot_bring_back_what_the_first_took() -> None:
    async def main() -> tuple[list[str], str]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            scene.stage.ask(CreateReply())
            await scene.stage.wait(PlayoutStopped)
            item_id = next(iter(scene.session.conversation)).id
            scene.stage.ask(TruncateItem(item_id=item_id, audio_end_ms=600))
            scene.stage.ask(TruncateItem(item_id=item_id, audio_end_ms=1300))
            await scene.stage.wait(ItemTruncated, 2)
            return [each.heard for each in scene.stage.all(ItemTruncated)], scene.texts()[-1][1]

    assert run_virtual(main()) == (["One two", "One two"], "One two")


def test_a_reply_that_was_cut_may_be_truncated_further_and_one_that_is_being_written_may_not() -> None:
    async def main() -> tuple[str, str]:
        async with calling(scripted(llm=ScriptedLlm([[LONG, 9.0, "more"]]))) as scene:
            scene.stage.ask(CreateReply())
            await scene.stage.wait(PlayoutStarted)
            await asyncio.sleep(1.1)
            item_id = next(iter(scene.session.conversation)).id
            scene.stage.ask(TruncateItem(item_id=item_id, audio_end_ms=600))
            error = await scene.stage.wait(ErrorHappened)
            scene.stage.ask(CancelReply())
            scene.stage.ask(TruncateItem(item_id=item_id, audio_end_ms=600))
            await scene.stage.wait(ItemTruncated, 2)
            return error.message, scene.texts()[-1][1]

    message, text = run_virtual(main())

    assert "still being written" in message
    assert text == "One two"


def test_the_settings_of_the_first_request_are_in_force_from_the_start() -> None:
    settings = Settings(turn_detection=TurnDetection(create_reply=False))

    async def main() -> list[str]:
        async with calling(scripted(), settings=settings) as scene:
            await scene.stage.say(1.0)
            await scene.stage.wait(TranscriptCompleted)
            await asyncio.sleep(2.0)
            return scene.stage.names()

    assert "ReplyStarted" not in run_virtual(main())
