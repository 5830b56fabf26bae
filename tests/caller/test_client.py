"""One call over real WebRTC, against a far end that echoes."""

import asyncio
import json
import socket

import numpy as np
import pytest
from aiohttp import web

from media_server.audio.chunk import SPEAKING_HZ, silence
from media_server.audio.levels import level_dbfs
from media_server.caller.client import CallClient, Received, is_type
from media_server.errors import ClientError, PeerGoneError, ServerFullError
from tests.caller.far_end import FarEnd, far_end

pytestmark = pytest.mark.e2e

TONE = (8000 * np.sin(np.arange(SPEAKING_HZ // 2) * 2 * np.pi * 440 / SPEAKING_HZ)).astype(np.int16)


async def test_what_the_far_end_sends_back_is_heard_and_timed() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url) as client:
        sent_s = await client.play(TONE)
        await client.play(silence(SPEAKING_HZ * 4 // 10))  # the way back over the far end's jitter buffer

        first_s = client.ear.first_sound_s()
        last_s = client.ear.last_sound_s()
        assert first_s is not None
        assert last_s is not None
        assert sent_s - 0.5 < first_s < sent_s
        assert sent_s < last_s < sent_s + 0.4
        assert 0.4 < last_s - first_s < 0.6
        assert max(frame.dbfs for frame in client.ear.frames) == pytest.approx(level_dbfs(TONE), abs=2)


async def test_the_way_through_is_timed_step_by_step() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url) as client:
        await client.play(TONE)
        setup = client.setup

    assert setup.answer_ms is not None
    assert setup.connected_ms is not None
    assert setup.channel_ms is not None
    assert setup.first_packet_ms is not None
    assert 0 < setup.answer_ms < setup.connected_ms <= setup.channel_ms < 2000
    assert setup.connected_ms - 5 < setup.first_packet_ms < 2000


async def test_events_and_commands_cross() -> None:
    far = FarEnd(
        greeting=[{"type": "session.created"}],
        answers={"response.create": [{"type": "response.next"}, {"type": "response.last"}]},
    )

    async with far_end(far), CallClient(far.url) as client:
        created = await client.wait_for(is_type("session.created"), 2)
        mark = client.n_received
        client.say_in_writing("hello")
        last = await client.wait_for(is_type("response.last"), 2, after=mark)

    assert [received.type for received in client.received] == ["session.created", "response.next", "response.last"]
    assert created.at_s < last.at_s
    assert far.commands[0]["item"]["content"] == [{"type": "input_text", "text": "hello"}]
    assert far.commands[1] == {"type": "response.create"}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("no JSON", "wanted an object with a type"),
        ("[" * 60_000, "wanted an object with a type"),
        ("[]", "wanted an object with a type"),
        ('{"type": 7}', "wanted an object with a type"),
        ('{"type": "parley.partial", "tail": ""}', "'parley.partial': stable is missing, wanted a text"),
    ],
)
async def test_a_message_that_is_no_event_is_left_out_and_costs_no_call(
    message: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with far_end(FarEnd(greeting=[{"type": "session.created"}])) as far, CallClient(far.url) as client:
        await client.wait_for(is_type("session.created"), 2)
        far.channels[0].send(message)
        far.channels[0].send('{"type": "session.updated"}')
        await client.wait_for(is_type("session.updated"), 2)

    assert [received.type for received in client.received] == ["session.created", "session.updated"]
    assert caplog.messages == [f"{far.url}: the server sent what cannot be read, it is left out: {why}"]


async def test_a_bug_of_whoever_takes_the_events_ends_the_call_and_is_raised_as_it_is() -> None:
    def fail(received: Received) -> None:
        raise KeyError(received.type)

    async with far_end(FarEnd(greeting=[{"type": "session.created"}])) as far:
        with pytest.raises(KeyError, match=r"session\.created"):
            async with CallClient(far.url, on_event=fail) as client:
                await client.wait_for(is_type("response.done"), 2)

    assert far.hung_up == ["rtc_1"]


async def test_behind_a_proxy_that_strips_a_path_the_call_is_hung_up_under_that_path() -> None:
    async with far_end(FarEnd(prefix="/voice")) as far, CallClient(far.url):
        pass

    assert far.hung_up == ["rtc_1"]


async def test_waiting_for_what_never_comes_ends_in_time() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url) as client:
        with pytest.raises(TimeoutError):
            await client.wait_for(is_type("response.done"), 0.02)


async def test_leaving_the_block_hangs_up_and_ends_every_wait() -> None:
    async with far_end(FarEnd()) as far, asyncio.TaskGroup() as group:
        async with CallClient(far.url) as client:
            speaking = group.create_task(_ending(client.play(np.tile(TONE, 20))))
            waiting = group.create_task(_ending(client.wait_for(is_type("response.done"), 20)))
            await asyncio.sleep(0)
            assert client.call_id == "rtc_1"

        assert "the call ended" in await speaking
        assert "the call ended" in await waiting

    assert far.hung_up == ["rtc_1"]


async def test_a_far_end_that_hangs_up_ends_the_call() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url) as client:
        await far.peers[0].close()

        with pytest.raises(PeerGoneError, match="the call ended"):
            await client.wait_for(is_type("response.done"), 5)
        with pytest.raises(PeerGoneError, match="not open"):
            client.send({"type": "response.create"})


async def test_a_server_that_gave_no_token_lets_no_call_be_resumed() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url) as client:
        with pytest.raises(ClientError, match="gave no Parley-Resume"):
            await client.resume()

        assert not client.ended


async def test_a_server_on_the_loopback_is_offered_the_loopback_alone() -> None:
    async with far_end(FarEnd()) as far, CallClient(far.url.replace("127.0.0.1", "localhost")):
        pass

    candidates = {line.split()[4] for line in far.offers[0].splitlines() if line.startswith("a=candidate")}
    assert {"127.0.0.1"} <= candidates <= {"127.0.0.1", "::1"}


async def test_servers_that_cannot_be_asked_are_left_out() -> None:
    servers = [{"urls": ["turn:[::1]:3478", "stun:a?transport=tcp"], "username": "1:a", "credential": "b"}]
    far = FarEnd(ice_servers=web.json_response({"ice_servers": servers, "ttl_s": 60}))

    async with far_end(far), CallClient(far.url) as client:
        await client.play(TONE)

    assert client.setup.connected_ms is not None


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"ice_servers": [7]}', '{"ice_servers": [{"urls": [7]}]}'])
async def test_ice_servers_that_cannot_be_read_are_the_mistake_of_the_server(body: str) -> None:
    async with far_end(FarEnd(ice_servers=web.Response(text=body))) as far:
        with pytest.raises(PeerGoneError, match="answered with what are no ICE servers"):
            await CallClient(far.url).__aenter__()


async def test_session_settings_and_the_key_travel_with_the_offer() -> None:
    far = FarEnd()
    settings = {"type": "realtime", "instructions": "Be kind."}

    async with far_end(far), CallClient(far.url, api_key="ek_1", session=settings):
        pass

    assert far.headers[0]["Authorization"] == "Bearer ek_1"
    assert json.loads(far.sessions[0]) == settings


async def test_a_full_server_says_when_to_come_back() -> None:
    full = web.json_response(
        {"error": {"message": "25 of 25 calls are taken"}}, status=503, headers={"Retry-After": "7"}
    )
    async with far_end(FarEnd(refusal=full)) as far:
        with pytest.raises(ServerFullError, match="25 of 25 calls are taken") as caught:
            await CallClient(far.url).__aenter__()

    assert caught.value.retry_after_s == 7


async def test_a_refusal_is_told_in_the_words_of_the_server() -> None:
    refusal = web.json_response({"error": {"message": "no such key"}}, status=401)
    async with far_end(FarEnd(refusal=refusal)) as far:
        with pytest.raises(ClientError, match="refused the call with 401: no such key"):
            await CallClient(far.url).__aenter__()


@pytest.mark.parametrize("body", [b"hello", b"", b"\xff", b"v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"])
async def test_an_answer_that_is_no_sdp_is_the_mistake_of_the_server(body: bytes) -> None:
    async with far_end(FarEnd(refusal=web.Response(body=body))) as far:
        with pytest.raises(PeerGoneError, match="answered with what is no SDP answer"):
            await CallClient(far.url).__aenter__()


async def test_a_place_where_no_server_is_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

        with pytest.raises(PeerGoneError, match="nobody answers there"):
            await CallClient(url).__aenter__()


async def _ending(call: object) -> str:
    try:
        await call  # type: ignore[misc]
    except PeerGoneError as error:
        return str(error)
    return ""
