"""A call begins with an offer and ends by a hang-up; what is wrong is told in one shape."""

import asyncio
import json
import re
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from media_server.errors import BadRequestError, ServerFullError
from signaling import realtime
from signaling.middleware import RESUME, RESUME_WITHIN, read_body
from tests.signaling.scripted_house import FakePeer, ScriptedEngines, front_door
from tests.transport.webrtc.test_offer import CHROMIUM

SDP = {"Content-Type": "application/sdp"}


def form(**parts: str) -> aiohttp.MultipartWriter:
    """Return a form as the stock SDK posts it: no file names."""
    writer = aiohttp.MultipartWriter("form-data")
    for name, text in parts.items():
        writer.append(text).set_content_disposition("form-data", name=name)
    return writer


def part(name: str, text: str) -> str:
    """Return one part of a form with the boundary `x`, as it stands in the body."""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the error in an answer; it must be the only thing there."""
    body = await response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["type", "code", "message", "param"]
    error: dict[str, Any] = body["error"]
    return error


async def test_an_offer_becomes_a_call() -> None:
    peer = FakePeer("v=0\r\ns=answer\r\n")
    async with front_door(peer=lambda: peer) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 201
        assert response.content_type == "application/sdp"
        assert await response.text() == "v=0\r\ns=answer\r\n"
        place, _, call_id = response.headers["Location"].rpartition("/")
        assert place == "/v1/realtime/calls"
        assert call_id.startswith("rtc_")
        assert house.manager.find(call_id) is not None
        assert ".local" not in peer.offers[0]


async def test_a_form_carries_the_session() -> None:
    async with front_door(peer=FakePeer) as (client, house):
        session = {"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "anna"}}}

        response = await client.post(realtime.CALLS, data=form(sdp=CHROMIUM, session=json.dumps(session)))

        call = house.manager.find(response.headers["Location"].rpartition("/")[2])
        assert response.status == 201
        assert call is not None
        assert call.settings.instructions == "Be brief."
        assert call.settings.voice == "anna"


async def test_without_a_session_the_configuration_holds() -> None:
    async with front_door(peer=FakePeer, flags={"call.instructions": "Sell coffee."}) as (client, house):
        response = await client.post(realtime.CALLS, data=form(sdp=CHROMIUM))

        call = house.manager.find(response.headers["Location"].rpartition("/")[2])
        assert call is not None
        assert call.settings.instructions == "Sell coffee."


async def test_a_form_with_file_names_is_taken_too() -> None:
    async with front_door(peer=FakePeer) as (client, _):
        data = aiohttp.FormData()
        data.add_field("sdp", CHROMIUM.encode(), filename="offer.sdp", content_type="application/sdp")

        response = await client.post(realtime.CALLS, data=data)

        assert response.status == 201


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("preamble\r\n" + part("sdp", CHROMIUM) + "--x--\r\nepilogue", id="with-words-around"),
        pytest.param(part("sdp", CHROMIUM).replace('"', "") + "--x--", id="without-quotes"),
        pytest.param(part("sdp", CHROMIUM) + part("sdp", "v=0") + "--x--", id="twice"),
    ],
)
async def test_a_form_may_look_odd(body: str) -> None:
    async with front_door(peer=FakePeer) as (client, _):
        headers = {"Content-Type": 'multipart/form-data; charset=utf-8; boundary="x"'}

        response = await client.post(realtime.CALLS, data=body.encode(), headers=headers)

        assert response.status == 201


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(part("sdp", CHROMIUM), id="torn-off"),
        pytest.param("--x\r\n\r\n--x" * 3_000 + "--", id="empty-parts"),
        pytest.param(part("a", "") * 9 + part("sdp", CHROMIUM) + "--x--", id="many-parts"),
        pytest.param(part("sdp", CHROMIUM).replace("; name", ";a" * 15_000 + "; name") + "--x--", id="long-head"),
        pytest.param(part("sdp", CHROMIUM).replace("name=", "") + "--x--", id="no-name"),
        pytest.param("--x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" * 500 + "--x--", id="nested"),
        pytest.param("--x\r\nContent-Disposition: form-data; name*=\r\n\r\n\r\n--x--", id="half-a-parameter"),
        pytest.param("--x\r\nContent-Disposition: form-data; name=" + "a " * 9_000 + "\r\n\r\n\r\n--x--", id="words"),
    ],
)
async def test_a_form_that_no_client_would_send_is_a_bad_request(body: str) -> None:
    async with front_door(peer=FakePeer) as (client, _):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}

        response = await client.post(realtime.CALLS, data=body.encode(), headers=headers)

        assert response.status == 400
        assert (await error_of(response))["type"] == "invalid_request_error"


@pytest.mark.parametrize(("method", "ending", "status"), [("POST", "/hangup", 200), ("DELETE", "", 204)])
async def test_a_hang_up_ends_the_call(method: str, ending: str, status: int) -> None:
    peer = FakePeer()
    async with front_door(peer=lambda: peer) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        response = await client.request(method, created.headers["Location"] + ending)

        assert response.status == status
        assert peer.closed.is_set()
        assert house.manager.calls == 0


def kept_in(peers: list[FakePeer], make: Callable[[], FakePeer]) -> Callable[[], FakePeer]:
    """Return what makes a house's connections; the test finds them in `peers`."""

    def make_peer() -> FakePeer:
        peers.append(make())
        return peers[-1]

    return make_peer


async def resume(client: aiohttp.ClientSession | Any, created: Any, **headers: str) -> Any:
    """Return the answer to a request that resumes a call."""
    return await client.post(f"{created.headers['Location']}/resume", data=CHROMIUM, headers=SDP | headers)


async def test_a_call_goes_on_over_a_new_connection_for_whoever_has_its_token() -> None:
    peers: list[FakePeer] = []

    async with front_door(peer=kept_in(peers, lambda: FakePeer(f"v=0\r\ns={len(peers)}\r\n"))) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        response = await resume(client, created, **{RESUME: created.headers[RESUME]})
        await asyncio.wait_for(peers[0].closed.wait(), 5)

        call = house.manager.find(created.headers["Location"].rpartition("/")[2])
        assert response.status == 200
        assert response.content_type == "application/sdp"
        assert await response.text() == "v=0\r\ns=1\r\n"
        assert call is not None
        assert call.media is peers[1]
        assert house.manager.calls == 1


async def test_an_offer_of_the_same_connection_restarts_it() -> None:
    peers: list[FakePeer] = []

    async with front_door(peer=kept_in(peers, lambda: FakePeer(restarts="v=0\r\ns=restarted\r\n"))) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        call = house.manager.find(created.headers["Location"].rpartition("/")[2])
        assert call is not None
        await asyncio.wait_for(peers[0].running.wait(), 5)
        response = await resume(client, created, **{RESUME: created.headers[RESUME]})

        assert response.status == 200
        assert await response.text() == "v=0\r\ns=restarted\r\n"
        assert len(peers) == 1
        assert len(peers[0].offers) == 2


@pytest.mark.parametrize("path", ["", "/resume"])
async def test_an_offer_of_a_caller_who_has_given_up_changes_nothing(path: str) -> None:
    peers: list[FakePeer] = []

    async with front_door(peer=kept_in(peers, FakePeer)) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        where = created.headers["Location"] + path if path else realtime.CALLS
        head = f"POST {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CHROMIUM.encode())}\r\n"
        for name, value in (SDP | {RESUME: created.headers[RESUME]}).items():
            head += f"{name}: {value}\r\n"
        with socket.create_connection((client.server.host, client.server.port)) as impatient:
            impatient.sendall(f"{head}\r\n{CHROMIUM}".encode())
        # As TCP brings it to a server that was out of reach: the goodbye right behind the request.
        await client.get("/health")
        await client.get("/health")

        assert len(peers) == 1
        assert house.manager.calls == 1


async def test_a_caller_is_told_how_long_a_call_that_is_no_longer_heard_waits_for_it() -> None:
    async with front_door(peer=FakePeer, flags={"webrtc.gone_after_s": 6, "call.resume_s": "1.5"}) as (client, _):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert created.headers[RESUME_WITHIN] == "7.5"
        assert RESUME_WITHIN in created.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("headers", [{}, {RESUME: "guessed"}, {RESUME: "\xe9"}])
async def test_nobody_resumes_a_call_without_its_token(headers: dict[str, str]) -> None:
    async with front_door(peer=FakePeer) as (client, _):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        response = await resume(client, created, **headers)

        assert response.status == 404
        assert (await error_of(response))["code"] == "not_found"


async def test_a_call_that_is_over_cannot_be_resumed() -> None:
    async with front_door(peer=FakePeer) as (client, _):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        await client.delete(created.headers["Location"])
        response = await resume(client, created, **{RESUME: created.headers[RESUME]})

        assert response.status == 404


async def test_a_call_that_ends_while_a_new_connection_is_answered_closes_it() -> None:
    class EndingPeer(FakePeer):
        async def answer(self, offer_sdp: str) -> str:
            if peers[1:]:
                await house.manager.hang_up(created.headers["Location"].rpartition("/")[2])
            return await super().answer(offer_sdp)

    peers: list[FakePeer] = []

    async with front_door(peer=kept_in(peers, EndingPeer)) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        response = await resume(client, created, **{RESUME: created.headers[RESUME]})

        assert response.status == 404
        assert peers[1].closed.is_set()


@pytest.mark.parametrize(("body", "kind", "status"), [("v=0\r\n", "application/sdp", 422), ("{}", "text/json", 415)])
async def test_a_call_cannot_be_resumed_with_what_is_no_offer(body: str, kind: str, status: int) -> None:
    async with front_door(peer=FakePeer) as (client, house):
        created = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        headers = {"Content-Type": kind, RESUME: created.headers[RESUME]}
        response = await client.post(f"{created.headers['Location']}/resume", data=body, headers=headers)

        assert response.status == status
        assert house.manager.calls == 1


async def test_a_call_that_is_not_there_cannot_be_hung_up() -> None:
    async with front_door() as (client, _):
        response = await client.post(f"{realtime.CALLS}/rtc_none/hangup")

        assert response.status == 404
        assert await error_of(response) == {
            "type": "invalid_request_error",
            "code": "not_found",
            "message": "there is no call 'rtc_none'",
            "param": "call_id",
        }


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        pytest.param(b"hello", "application/sdp", 400, "bad_sdp", id="no-sdp"),
        pytest.param(b"", "application/sdp", 400, "bad_sdp", id="empty"),
        pytest.param(b"\xff\xfe", "application/sdp", 400, "invalid_request", id="not-utf8"),
        pytest.param(re.sub("opus|G722|PCM", "X", CHROMIUM).encode(), "application/sdp", 422, None, id="x"),
        pytest.param(b"v=0\r\n", "application/sdp", 422, "unusable_sdp", id="no-audio"),
        pytest.param(b"{}", "application/json", 415, "unsupported_media_type", id="json"),
        pytest.param(b"--x--", "multipart/form-data; boundary=x", 400, "invalid_request", id="no-parts"),
        pytest.param(b"hello", "multipart/form-data; boundary=x", 400, "invalid_request", id="no-form"),
        pytest.param(b"hello", "multipart/form-data", 400, "invalid_request", id="no-boundary"),
        pytest.param(b"x" * 70_000, "application/sdp", 413, "too_large", id="too-large"),
    ],
)
async def test_what_cannot_be_a_call_is_told_so(body: bytes, content_type: str, status: int, code: str | None) -> None:
    async with front_door(peer=FakePeer) as (client, house):
        response = await client.post(realtime.CALLS, data=body, headers={"Content-Type": content_type})

        assert response.status == status
        error = await error_of(response)
        assert error["type"] == "invalid_request_error"
        assert error["code"] == (code or error["code"])
        assert house.manager.calls == 0


@pytest.mark.parametrize(
    "session", ["", "[]", "nonsense", '{"type": "realtime", "audio": 3}', "[" * 30_000, '{"instructions": "\\u0000"}']
)
async def test_a_session_that_cannot_be_is_a_bad_request(session: str) -> None:
    async with front_door(peer=FakePeer) as (client, house):
        response = await client.post(realtime.CALLS, data=form(sdp=CHROMIUM, session=session))

        assert response.status == 400
        assert str((await error_of(response))["param"]).startswith("session")
        assert house.manager.calls == 0


async def test_a_full_server_says_when_to_come_back() -> None:
    async with front_door(peer=FakePeer, flags={"server.max_calls": 1, "server.retry_after_s": 7}) as (client, _):
        first = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)
        second = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert (first.status, second.status) == (201, 503)
        assert second.headers["Retry-After"] == "7"
        assert (await error_of(second))["code"] == "server_full"


async def test_a_server_without_a_free_port_says_when_to_come_back_as_a_full_one_does() -> None:
    peer = FakePeer(ServerFullError("no UDP port is free for media", retry_after_s=5))
    async with front_door(peer=lambda: peer, flags={"server.retry_after_s": 7}) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 503
        assert response.headers["Retry-After"] == "7"
        assert peer.closed.is_set()
        assert house.manager.calls == 0


@pytest.mark.parametrize("state", ["warming", "down: its worker died"])
async def test_while_an_engine_is_not_ready_no_call_is_taken(state: str) -> None:
    async with front_door(ScriptedEngines(state=state), peer=FakePeer) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        error = await error_of(response)
        assert error["code"] == "not_ready"
        assert "worker" not in error["message"]
        assert house.manager.calls == 0


async def test_readiness_is_looked_at_before_the_body() -> None:
    async with front_door(ScriptedEngines(state="warming"), peer=FakePeer) as (client, _):
        response = await client.post(realtime.CALLS, data=b"hello", headers=SDP)

        assert response.status == 503


async def test_a_server_that_stops_takes_no_call() -> None:
    async with front_door(peer=FakePeer) as (client, house):
        house.stopping.set()

        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        assert (await error_of(response))["message"] == "the server is stopping"


async def test_a_call_that_was_being_answered_when_the_server_stopped_is_refused() -> None:
    class SlowPeer(FakePeer):
        async def answer(self, offer_sdp: str) -> str:
            house.stopping.set()
            return await super().answer(offer_sdp)

    async with front_door(peer=SlowPeer) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 503
        assert house.manager.calls == 0


async def test_an_offer_that_cannot_be_answered_gives_its_place_back() -> None:
    peer = FakePeer(BadRequestError("the offer cannot be answered"))
    async with front_door(peer=lambda: peer) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 400
        assert house.manager.calls == 0
        assert peer.closed.is_set()


async def test_a_machine_that_is_too_busy_to_answer_asks_to_come_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class BlockedPeer(FakePeer):
        async def answer(self, offer_sdp: str) -> str:
            await self.closed.wait()
            return await super().answer(offer_sdp)

    monkeypatch.setattr(realtime, "ANSWER_LIMIT_S", 0.01)
    async with front_door(peer=BlockedPeer) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 503
        assert response.headers["Retry-After"] == str(house.config.server.retry_after_s)
        assert (await error_of(response))["message"] == "the server is too busy to answer"
        assert house.manager.calls == 0


async def test_a_bug_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with front_door(peer=lambda: FakePeer(ZeroDivisionError("in /secret/path"))) as (client, house):
        response = await client.post(realtime.CALLS, data=CHROMIUM, headers=SDP)

        assert response.status == 500
        assert await error_of(response) == {
            "type": "server_error",
            "code": "internal_error",
            "message": "something went wrong on the server",
            "param": None,
        }
        assert house.manager.calls == 0
        assert "ZeroDivisionError" in caplog.text


async def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    async with front_door(peer=FakePeer, body_limit_s=0.01) as (client, _):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        head = (
            f"POST {realtime.CALLS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\nContent-Length: 9\r\n\r\n"
        )
        writer.write(head.encode() + b"v=0")

        answer = await reader.readuntil(b"}}")
        writer.close()

        assert answer.startswith(b"HTTP/1.1 400")
        assert b'"body_too_slow"' in answer


async def test_a_body_that_is_not_compressed_as_it_says_is_a_bad_request() -> None:
    async with front_door() as (client, _):
        headers = {"Content-Type": "application/sdp", "Content-Encoding": "gzip"}
        response = await client.post(realtime.CALLS, data=b"v=0", headers=headers)

        assert response.status == 400
        assert (await error_of(response))["message"] == "the body is not what its Content-Encoding says"


async def test_a_client_that_hangs_up_within_its_body_is_no_bug_of_ours() -> None:
    begun = asyncio.Event()
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(request: web.Request) -> web.Response:
        begun.set()
        with pytest.raises(BadRequestError) as error:
            await read_body(request, 5.0)
        told.set_result(error.value.message)
        return web.Response()

    app = web.Application()
    app.router.add_post("/", read)
    runner = web.AppRunner(app)  # as `serve` has it; a TestServer ends the handler of a client that is gone
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nv=0")
        await begun.wait()
        writer.transport.abort()

        assert await asyncio.wait_for(told, 5) == "the client has hung up"
    finally:
        await runner.cleanup()


@pytest.mark.e2e
async def test_a_real_connection_opens_its_channel_and_is_hung_up() -> None:
    async with front_door() as (client, house):
        caller = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        caller.addTransceiver("audio")
        channel = caller.createDataChannel("oai-events")
        message: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        channel.once("message", message.set_result)
        await caller.setLocalDescription(await caller.createOffer())

        response = await client.post(realtime.CALLS, data=caller.localDescription.sdp, headers=SDP)
        await caller.setRemoteDescription(RTCSessionDescription(await response.text(), "answer"))
        async with asyncio.timeout(10):
            first = json.loads(await message)
        hung_up = await client.post(f"{response.headers['Location']}/hangup")
        await caller.close()

        assert first["type"] == "session.created"
        assert hung_up.status == 200
        assert house.manager.calls == 0
