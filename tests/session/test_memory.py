"""What a call leaves behind: nothing that waits for the garbage collector, which is seldom asked."""

import gc
import weakref

import pytest

from media_server.audio.playout import Playout
from media_server.events import Settings
from media_server.metrics import Metrics
from media_server.session.inbox import Inbox
from media_server.session.manager import SessionManager
from media_server.session.reply import Reply
from media_server.session.session import Session
from tests.garbage import nothing_collected
from tests.session.scene import calling, configured, scripted
from tests.virtual_time import run_virtual


@pytest.mark.parametrize("mode", ["talk", "echo"])
def test_a_call_that_is_over_goes_with_the_last_who_knows_it(mode: str) -> None:
    async def main() -> weakref.ref[Session]:
        async with calling(scripted(greeting="Welcome!"), config=configured(call__mode=mode)) as scene:
            await scene.stage.say(1.0)
            if mode == "talk":
                await scene.stage.wait_until(lambda: "ReplyDone" in scene.stage.names())
            return weakref.ref(scene.session)

    with nothing_collected():
        assert run_virtual(main())() is None


def test_a_reply_that_is_cut_goes_with_its_call() -> None:
    async def main() -> None:
        async with calling(scripted(greeting="Welcome, and good morning to you!")) as scene:
            await scene.stage.wait_until(lambda: "PlayoutStarted" in scene.stage.names())

    def parts() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, Reply | Playout | Inbox)]

    with nothing_collected():
        of_others = parts()
        run_virtual(main())
        left = [each for each in parts() if not any(each is known for known in of_others)]
    assert left == []


def test_a_call_that_never_began_goes_with_its_place() -> None:
    async def main() -> weakref.ref[Session]:
        manager = SessionManager(scripted(), configured(), Metrics())
        session = manager.admit(Settings())
        manager.release(session)
        return weakref.ref(session)

    with nothing_collected():
        assert run_virtual(main())() is None
