"""A caller who presses keys."""

import asyncio

import pytest

from media_server.events import CallStarted, DigitPressed
from tests.session.scene import calling, configured, scripted
from tests.virtual_time import run_virtual


def test_a_pressed_key_is_told_to_every_channel() -> None:
    async def main() -> DigitPressed:
        async with calling(scripted()) as scene:
            await scene.stage.wait(CallStarted)
            scene.stage.on_digit(DigitPressed("5", 100))
            return await scene.stage.wait(DigitPressed)

    assert run_virtual(main()) == DigitPressed("5", 100)


def test_a_caller_who_presses_keys_is_not_idle() -> None:
    async def main() -> float:
        async with calling(scripted(), config=configured(call__idle_timeout_s="10")) as scene:
            await asyncio.sleep(8)
            scene.stage.on_digit(DigitPressed("5", 100))
            await scene.over
            return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(18, abs=0.5)
