"""A call outlives its connection: whoever was lost comes back to the same conversation."""

import asyncio

import pytest

from media_server.conversation import SpokenMessage
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm
from media_server.errors import NotFoundError
from media_server.events import (
    CallStarted,
    ChangeSettings,
    ItemAdded,
    ItemTruncated,
    PlayoutStarted,
    PlayoutStopped,
    ReplyDone,
    SettingsChanged,
    SpeechStarted,
    TranscriptCompleted,
)
from tests.session.scene import Scene, Stage, calling, configured, scripted
from tests.virtual_time import run_virtual

LONG = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen."


async def lose(scene: Scene) -> None:
    """Let the caller's connection be lost."""
    scene.stage.lose()
    await scene.stage.closed.wait()


async def be_spoken_to_while_away(scene: Scene) -> None:
    """Hear nothing of what is spoken next; that is over three seconds before it can be noticed."""
    await scene.stage.wait(PlayoutStarted)
    scene.stage.present.clear()
    await scene.stage.wait(PlayoutStopped)
    await asyncio.sleep(3)


def come_back(scene: Scene) -> Stage:
    """Attach the caller's new connection and return it."""
    stage = Stage()
    scene.session.attach_media(stage)
    scene.session.attach_channel(stage)
    return stage


def test_a_lost_caller_who_comes_back_finds_the_conversation_and_the_settings() -> None:
    async def main() -> tuple[Stage, str, float]:
        async with calling(scripted()) as scene:
            scene.stage.ask(ChangeSettings(changes={"instructions": "Be brief."}))
            await scene.stage.wait(SettingsChanged)
            await scene.stage.say(1)
            await scene.stage.wait(PlayoutStopped)
            await lose(scene)
            await asyncio.sleep(15)
            stage = come_back(scene)
            await stage.wait(ItemAdded, 2)
            await stage.say(1)
            await stage.wait(PlayoutStopped)
            return stage, scene.session.id, scene.metrics.snapshot()["calls_resumed_total"]

    stage, call_id, n_resumed = run_virtual(main())

    (started,) = stage.all(CallStarted)
    shown = [event.item for event in stage.all(ItemAdded)[:2]]
    assert (started.call_id, started.settings.instructions) == (call_id, "Be brief.")
    assert stage.names()[:3] == ["CallStarted", "ItemAdded", "ItemAdded"]
    assert [item.text for item in shown if isinstance(item, SpokenMessage)] == ["hello there", "Good morning to you."]
    assert n_resumed == 1


def test_a_reply_is_cut_at_what_was_heard_before_the_caller_was_lost() -> None:
    async def main() -> tuple[Scene, float]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            await scene.stage.say(1)
            started = await scene.stage.wait(PlayoutStarted)
            await asyncio.sleep(1)
            heard_s = asyncio.get_running_loop().time() - scene.stage.time_of(started)
            scene.stage.present.clear()  # what is played from now on reaches nobody
            await asyncio.sleep(1.5)
            await lose(scene)
            await asyncio.sleep(1)
            come_back(scene)
            await asyncio.sleep(5)
            return scene, heard_s

    scene, heard_s = run_virtual(main())

    (_, said), (_, heard) = scene.texts()
    last = scene.stage.all(ItemTruncated)[-1]
    assert said == "hello there"
    assert 0 < len(heard) < len(LONG) / 2
    assert LONG.startswith(heard)
    assert last.audio_end_ms == pytest.approx(heard_s * 1000, abs=40)


def test_a_reply_that_was_spoken_to_nobody_is_given_again() -> None:
    async def main() -> tuple[list[tuple[str, str]], list[ReplyDone]]:
        async with calling(scripted()) as scene:
            await scene.stage.say(1)
            scene.stage.present.clear()
            for _ in range(100):  # the ear's own clock goes on while nothing comes
                scene.stage.put_packet()
                await asyncio.sleep(0.02)
            await scene.stage.wait(PlayoutStopped)
            await lose(scene)
            stage = come_back(scene)
            await stage.wait(PlayoutStopped)
            return scene.texts(), stage.all(ReplyDone)

    texts, replies = run_virtual(main())

    assert texts == [("user", "hello there"), ("assistant", ""), ("assistant", "Good morning to you.")]
    assert [reply.status for reply in replies] == ["completed"]


def test_a_greeting_that_was_spoken_to_nobody_is_spoken_again() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(greeting="Welcome to you.")) as scene:
            await be_spoken_to_while_away(scene)
            await lose(scene)
            stage = come_back(scene)
            await stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main()) == [("assistant", ""), ("assistant", "Welcome to you.")]


def test_a_greeting_that_was_due_while_nobody_was_there_is_spoken_when_they_are_back() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(greeting="Welcome to you.")) as scene:
            await scene.stage.wait(CallStarted)
            await lose(scene)
            await asyncio.sleep(5)
            stage = come_back(scene)
            await stage.wait(PlayoutStopped)
            return scene.texts()

    assert run_virtual(main()) == [("assistant", "Welcome to you.")]


def test_whoever_has_spoken_meanwhile_is_answered_and_not_greeted_again() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted(greeting="Welcome to you.")) as scene:
            await be_spoken_to_while_away(scene)
            scene.stage.speaking = True
            for _ in range(50):
                scene.stage.put_packet()
                await asyncio.sleep(0.02)
            await lose(scene)
            await asyncio.sleep(5)
            stage = come_back(scene)
            await stage.wait(PlayoutStopped)
            await asyncio.sleep(5)
            return scene.texts()

    assert run_virtual(main()) == [("assistant", ""), ("user", "hello there"), ("assistant", "Good morning to you.")]


def test_a_connection_that_is_lost_as_soon_as_it_stands_costs_nothing_that_was_heard_before() -> None:
    async def main() -> list[tuple[str, str]]:
        async with calling(scripted()) as scene:
            await scene.stage.say(1)
            await scene.stage.wait(PlayoutStopped)
            await asyncio.sleep(3)
            await lose(scene)
            stage = Stage()
            stage.lose()
            scene.session.attach_media(stage)
            await stage.closed.wait()
            await asyncio.sleep(1)
            return scene.texts()

    assert run_virtual(main()) == [("user", "hello there"), ("assistant", "Good morning to you.")]


def test_what_the_caller_was_saying_when_they_were_lost_is_answered_when_they_are_back() -> None:
    async def main() -> tuple[list[str], list[str]]:
        async with calling(scripted()) as scene:
            scene.stage.speaking = True
            await scene.stage.wait(SpeechStarted)
            await lose(scene)
            await asyncio.sleep(10)
            while_away = [role for role, _ in scene.texts()]
            stage = come_back(scene)
            await stage.wait(PlayoutStopped)
            return while_away, [text for _, text in scene.texts()]

    while_away, texts = run_virtual(main())

    assert while_away == ["user"]
    assert texts == ["hello there", "Good morning to you."]


def test_times_of_sound_go_on_over_the_new_connection() -> None:
    async def main() -> list[SpeechStarted]:
        async with calling(scripted(asr=ScriptedAsr(["one", "two"]))) as scene:
            await scene.stage.say(1)
            await scene.stage.wait(PlayoutStopped)
            await lose(scene)
            await asyncio.sleep(5)
            stage = come_back(scene)
            await asyncio.sleep(1)
            await stage.say(1)
            await stage.wait(TranscriptCompleted)
            return [*scene.stage.all(SpeechStarted), *stage.all(SpeechStarted)]

    first, second = run_virtual(main())

    assert first.audio_start_ms == pytest.approx(0, abs=40)
    assert second.audio_start_ms > first.audio_start_ms + 6_000


def test_whoever_does_not_come_back_in_time_has_left() -> None:
    async def main() -> tuple[str, float]:
        async with calling(scripted(), config=configured(call__resume_s="7")) as scene:
            await scene.stage.wait(CallStarted)
            await lose(scene)
            lost_s = asyncio.get_running_loop().time()
            reason = await scene.over
            return reason, asyncio.get_running_loop().time() - lost_s

    reason, waited_s = run_virtual(main())

    assert reason == "the network changed"
    assert waited_s == pytest.approx(7, abs=0.5)


def test_where_resuming_is_off_the_call_ends_with_its_connection() -> None:
    async def main() -> tuple[str, float]:
        async with calling(scripted(), config=configured(call__resume_s="0")) as scene:
            await scene.stage.wait(CallStarted)
            await lose(scene)
            lost_s = asyncio.get_running_loop().time()
            return await scene.over, asyncio.get_running_loop().time() - lost_s

    reason, waited_s = run_virtual(main())

    assert reason == "the network changed"
    assert waited_s < 0.1


def test_a_call_that_waits_for_its_caller_can_be_hung_up() -> None:
    async def main() -> str:
        async with calling(scripted()) as scene:
            await scene.stage.wait(CallStarted)
            await lose(scene)
            scene.session.hang_up("hung up")
            return await scene.over

    assert run_virtual(main()) == "hung up"


def test_a_new_connection_takes_the_place_of_one_that_still_seems_alive_once_it_stands() -> None:
    async def main() -> tuple[bool, Scene, Stage]:
        async with calling(scripted(llm=ScriptedLlm([[LONG]]))) as scene:
            await scene.stage.say(1)
            await scene.stage.wait(PlayoutStarted)
            await asyncio.sleep(1)
            stage = Stage()
            stage.present.clear()
            scene.session.attach_media(stage)
            await asyncio.sleep(1)
            closed_before = scene.stage.closed.is_set()
            stage.present.set()
            await scene.stage.closed.wait()
            scene.session.attach_channel(stage)
            await stage.wait(CallStarted)
            await asyncio.sleep(3)
            return closed_before, scene, stage

    closed_before, scene, stage = run_virtual(main())

    _, (_, heard) = scene.texts()
    assert not closed_before
    assert LONG.startswith(heard)
    assert 0 < len(heard) < len(LONG)
    assert max(loudness for _, loudness in stage.heard) == 0


def test_a_goodbye_of_the_old_connection_while_the_new_one_connects_ends_nothing() -> None:
    async def main() -> bool:
        async with calling(scripted()) as scene:
            await scene.stage.wait_until(lambda: scene.session.media is scene.stage)
            stage = Stage()
            stage.present.clear()
            scene.session.attach_media(stage)
            scene.stage.leave()
            await scene.stage.closed.wait()
            await asyncio.sleep(1)
            stage.present.set()
            scene.session.attach_channel(stage)
            await stage.say(1)
            await stage.wait(PlayoutStopped)
            return scene.session.media is stage

    assert run_virtual(main())


def test_a_new_connection_that_fails_leaves_the_old_one_alone() -> None:
    async def main() -> bool:
        async with calling(scripted()) as scene:
            await scene.stage.wait_until(lambda: scene.session.media is scene.stage)
            stage = Stage()
            stage.present.clear()
            scene.session.attach_media(stage)
            stage.leave()
            await stage.closed.wait()
            await scene.stage.say(1)
            await scene.stage.wait(PlayoutStopped)
            return scene.session.media is scene.stage

    assert run_virtual(main())


def test_of_two_new_connections_the_later_one_counts() -> None:
    async def main() -> tuple[bool, bool]:
        async with calling(scripted()) as scene:
            await scene.stage.wait_until(lambda: scene.session.media is scene.stage)
            earlier, later = Stage(), Stage()
            earlier.present.clear()
            scene.session.attach_media(earlier)
            scene.session.attach_media(later)
            await earlier.closed.wait()
            await scene.stage.closed.wait()
            await asyncio.sleep(0.1)
            return scene.session.media is later, later.closed.is_set()

    assert run_virtual(main()) == (True, False)


def test_a_call_that_is_over_takes_no_connection() -> None:
    async def main() -> None:
        async with calling(scripted()) as scene:
            await scene.stage.wait(CallStarted)
            scene.stage.leave()
            await scene.over
            with pytest.raises(NotFoundError, match="is over"):
                scene.session.attach_media(Stage())

    run_virtual(main())


def test_a_first_connection_that_never_comes_ends_the_call() -> None:
    async def main() -> str:
        async with calling(scripted()) as scene:
            scene.stage.present.clear()
            scene.stage.leave()
            return await scene.over

    assert run_virtual(main()) == "the caller did not connect"
