"""A call that goes on when the caller's network changes: over HTTP and real WebRTC, scripted engines behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from media_server.audio.chunk import SPEAKING_HZ, silence
from media_server.caller.client import CallClient, is_type
from media_server.errors import ClientError, NotFoundError, PeerGoneError
from media_server.session.manager import SessionManager
from media_server.transport.webrtc.aiortc_private import close_sockets
from signaling.app import build_app, build_house
from tests.signaling.scripted_house import FakePeer, ScriptedEngines, make_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

TONE = (8000 * np.sin(np.arange(SPEAKING_HZ // 2) * 2 * np.pi * 440 / SPEAKING_HZ)).astype(np.int16)
LIMIT_S = 15.0


@asynccontextmanager
async def serving(**flags: str | int) -> AsyncIterator[tuple[str, SessionManager]]:
    knobs = {name.replace("__", "."): value for name, value in flags.items()}
    house = build_house(make_config(knobs), ScriptedEngines())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(house.manager.run()), tasks.create_task(house.pacing.run())]
        async with TestServer(build_app(house), host="127.0.0.1") as server:
            yield str(server.make_url("")).rstrip("/"), house.manager
        for task in running:
            task.cancel()


async def exchange(client: CallClient, text: str) -> None:
    """Type a line and hear the answer out."""
    after = client.n_received
    client.say_in_writing(text)
    await client.wait_for(is_type("output_audio_buffer.stopped"), LIMIT_S, after=after)


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 (nobody tells of it, on purpose)
            await asyncio.sleep(0.02)


def pull_the_plug(client: CallClient) -> None:
    """Take the caller's network away: nothing goes out or comes in any more, not even a goodbye."""
    close_sockets(client._peer)


@pytest.mark.parametrize("where", ["a task", "the reader"])
async def test_a_caller_is_told_that_a_mistake_of_ours_ends_the_call(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def make_a_mistake() -> None:
        raise ZeroDivisionError("in /secret/path")

    def measure_nothing() -> None:
        raise ZeroDivisionError("in /secret/path")

    async with serving() as (url, manager), CallClient(url) as client:
        call = manager.find(client.call_id)
        assert call is not None
        if where == "a task":
            call._start(make_a_mistake(), "mistake")
        else:
            call._measure_levels = measure_nothing  # type: ignore[method-assign]
        error = await client.wait_for(is_type("error"), LIMIT_S)
        await until(lambda: manager.calls == 0)
        with pytest.raises(NotFoundError):
            call.attach_media(FakePeer())

    assert error.event["error"]["code"] == "internal_error"
    assert error.event["error"]["message"] == "something went wrong; the call ends"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("noticed", [True, False], ids=["the-server-has-noticed", "the-server-has-not-noticed"])
async def test_a_caller_whose_network_is_gone_resumes_the_call_with_its_conversation(noticed: bool) -> None:
    async with serving(webrtc__gone_after_s=1 if noticed else 60) as (url, manager), CallClient(url) as client:
        call_id = client.call_id
        await exchange(client, "first")
        pull_the_plug(client)
        call = manager.find(call_id)
        assert call is not None
        if noticed:
            await until(lambda: call.media is None)
        resumed_at = client.n_received
        await client.resume()
        created = await client.wait_for(is_type("session.created"), LIMIT_S, after=resumed_at)
        await exchange(client, "second")
        await client.play(TONE)
        await client.play(silence(SPEAKING_HZ // 2))
        heard = await client.wait_for(is_type("input_audio_buffer.speech_started"), LIMIT_S, after=resumed_at)
        since = [each.event for each in client.received[resumed_at:]]
        n_calls = manager.calls

    shown = [event["item"]["content"][0] for event in since if event["type"] == "conversation.item.done"]
    assert created.event["session"]["id"] == call_id
    assert shown[0]["text"] == "first"
    assert shown[1]["transcript"] == "hello"
    assert shown[2]["text"] == "second"
    assert heard.event["audio_start_ms"] > 0
    assert n_calls == 1


async def test_a_caller_who_says_goodbye_ends_the_call_at_once() -> None:
    async with serving() as (url, manager), CallClient(url) as client:
        await exchange(client, "first")
        await client._peer.close()
        await until(lambda: manager.calls == 0)
        with pytest.raises(ClientError, match="no call"):
            await client.resume()


async def test_a_call_that_was_resumed_can_be_resumed_again_and_is_hung_up_like_any_other() -> None:
    async with serving() as (url, manager):
        async with CallClient(url) as client:
            for _ in range(2):
                pull_the_plug(client)
                await client.resume()
            await exchange(client, "still there")

        assert manager.calls == 0


async def test_a_call_whose_caller_never_comes_back_ends() -> None:
    async with serving(webrtc__gone_after_s=1, call__resume_s=1) as (url, manager), CallClient(url) as client:
        pull_the_plug(client)
        await until(lambda: manager.calls == 0)
        with pytest.raises((ClientError, PeerGoneError)):
            await client.resume()
