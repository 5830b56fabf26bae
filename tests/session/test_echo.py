"""A call that says what it hears."""

import asyncio

from media_server.events import LevelsMeasured
from tests.session.scene import calling, configured, scripted
from tests.virtual_time import run_virtual


def test_an_echo_is_heard_within_two_packets_and_nobody_answers() -> None:
    async def main() -> tuple[int, set[str]]:
        async with calling(scripted(greeting="Welcome!"), config=configured(call__mode="echo")) as scene:
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 50)
            await scene.stage.say(1.0)
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 200)
            first = next(n for n, (_, loud) in enumerate(scene.stage.heard) if loud > 4000)
            return first, set(scene.stage.names(LevelsMeasured))

    first, names = run_virtual(main())

    assert 50 <= first <= 52
    assert names == {"CallStarted"}


def test_an_echo_goes_on_while_its_caller_speaks() -> None:
    async def main() -> tuple[float, str, float]:
        config = configured(call__mode="echo", call__idle_timeout_s="5")
        async with calling(scripted(), config=config) as scene:
            await scene.stage.say(12.0)
            spoken_s = asyncio.get_running_loop().time()
            reason = await scene.over
            return spoken_s, reason, asyncio.get_running_loop().time()

    spoken_s, reason, over_s = run_virtual(main())

    assert reason == "nobody spoke"
    assert 5 <= over_s - spoken_s < 6


def test_an_echo_that_was_late_once_is_not_late_for_ever() -> None:
    async def main() -> float:
        async with calling(scripted(), config=configured(call__mode="echo")) as scene:
            scene.stage.speaking = True
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 50)
            for _ in range(50):  # a burst of a second, as after a stall of the network
                scene.stage.put_packet()
            await scene.stage.wait_until(lambda: len(scene.stage.heard) == 60)
            return scene.session.playout.ahead_ms

    assert run_virtual(main()) <= 60
