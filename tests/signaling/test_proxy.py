"""What is passed on to another process, above all WebSockets."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMessage, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestClient, TestServer

from media_server.errors import BadRequestError, PeerGoneError
from signaling.proxy import Proxy, is_websocket

Talk = Callable[[web.WebSocketResponse], Awaitable[None]]


class Server(TestServer):
    """Lets a handler go on when its client is gone, as `serve` does."""

    async def _make_runner(self, **options: Any) -> web.BaseRunner:
        return await super()._make_runner(**(options | {"handler_cancellation": False}))


class Far:
    """A process that opens WebSockets on a Unix socket, and a client of another that passes on to it."""

    def __init__(
        self, folder: Path, talk: Talk, *, stuck_limit_s: float = 10.0, protocols: Sequence[str] = ("second", "third")
    ) -> None:
        self._protocols = protocols
        self._stuck_limit_s = stuck_limit_s
        self.requests: list[web.Request] = []
        self._socket = folder / "far.sock"
        self._talk = talk
        self._runner: web.AppRunner

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[TestClient[web.Request, web.Application]]:
        """Give a client of the process that passes on."""
        far, near = web.Application(), web.Application()
        far.router.add_get("/{rest:.*}", self._open)
        near.router.add_get("/{rest:.*}", self._pass_on)
        self._runner = web.AppRunner(far, shutdown_timeout=0)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._socket)).start()
        self._proxy = Proxy(self._socket, stuck_limit_s=self._stuck_limit_s)
        try:
            async with TestClient(Server(near)) as client:
                yield client
        finally:
            await self._proxy.close()
            await self.die()

    @property
    def transport(self) -> asyncio.Transport:
        """Return the connection on which the process got its first request."""
        transport = self.requests[0].transport
        assert isinstance(transport, asyncio.Transport)
        return transport

    async def take_nothing_in(self, until: asyncio.Event) -> None:
        """Read no more; then be gone without a word."""
        self.transport.pause_reading()
        await until.wait()
        self.transport.abort()

    async def die(self) -> None:
        """End the process that opens WebSockets."""
        await self._runner.cleanup()

    async def _open(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/forbidden":
            return web.Response(status=403, text="not you", headers={"Retry-After": "7"})
        websocket = web.WebSocketResponse(protocols=self._protocols, autoping=False)
        await websocket.prepare(request)
        await self._talk(websocket)
        return websocket

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert is_websocket(request)
        try:
            return await self._proxy.tunnel(request, request.headers)
        except BadRequestError:
            return web.Response(status=400)


async def echo(websocket: web.WebSocketResponse) -> None:
    """Say back what is said."""
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            await websocket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await websocket.pong(b"seen: " + message.data)


async def test_messages_go_both_ways_as_they_are(short_folder: Path) -> None:
    async with Far(short_folder, echo).client() as client, client.ws_connect("/call", autoping=False) as websocket:
        await websocket.send_str("für Elise")
        await websocket.send_bytes(b"\x00\xff" * 100_000)
        await websocket.ping(b"there?")
        answers = [await websocket.receive() for _ in range(3)]

    assert [(answer.type, answer.data) for answer in answers] == [
        (WSMsgType.TEXT, "für Elise"),
        (WSMsgType.BINARY, b"\x00\xff" * 100_000),
        (WSMsgType.PONG, b"seen: there?"),
    ]


async def test_the_process_sees_the_request_and_chooses_the_protocol(short_folder: Path) -> None:
    far = Far(short_folder, echo)
    headers = {"Authorization": "Bearer x"}
    async with (
        far.client() as client,
        client.ws_connect("/call?id=a%20b", protocols=["first", "second"], headers=headers) as websocket,
    ):
        assert websocket.protocol == "second"

    assert far.requests[0].path_qs == "/call?id=a%20b"
    assert far.requests[0].headers["Authorization"] == "Bearer x"


async def test_what_a_client_says_on_closing_reaches_the_process(short_folder: Path) -> None:
    heard: asyncio.Future[WSMessage] = asyncio.get_running_loop().create_future()

    async def listen(websocket: web.WebSocketResponse) -> None:
        heard.set_result(await websocket.receive())

    async with Far(short_folder, listen).client() as client, client.ws_connect("/call") as websocket:
        await websocket.close(code=4001, message=b"genug")
        message = await heard

    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "genug")


async def test_what_the_process_says_on_closing_reaches_the_client(short_folder: Path) -> None:
    async def leave(websocket: web.WebSocketResponse) -> None:
        await websocket.close(code=4002, message=b"full")

    async with Far(short_folder, leave).client() as client, client.ws_connect("/call") as websocket:
        message = await websocket.receive()

    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4002, "full")


async def test_a_close_without_a_code_is_one_without_trouble(short_folder: Path) -> None:
    async def leave(websocket: web.WebSocketResponse) -> None:
        await websocket._writer.send_frame(b"", WSMsgType.CLOSE)  # type: ignore[union-attr]

    async with Far(short_folder, leave).client() as client, client.ws_connect("/call") as websocket:
        message = await websocket.receive()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.OK)


async def test_the_process_learns_that_a_client_is_gone_without_a_word(short_folder: Path) -> None:
    heard: asyncio.Future[WSMessage] = asyncio.get_running_loop().create_future()

    async def listen(websocket: web.WebSocketResponse) -> None:
        heard.set_result(await websocket.receive())

    async with Far(short_folder, listen).client() as client:
        websocket = await client.ws_connect("/call")
        _transport(websocket).abort()
        message = await heard

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_client_learns_that_the_process_is_gone_without_a_word(short_folder: Path) -> None:
    async def vanish(websocket: web.WebSocketResponse) -> None:
        far.transport.abort()

    far = Far(short_folder, vanish)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        message = await websocket.receive()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_message_for_a_process_that_is_gone_ends_the_connection_and_nothing_else(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()

    async def vanish(websocket: web.WebSocketResponse) -> None:
        far.transport.abort()
        gone.set()

    far = Far(short_folder, vanish)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        await gone.wait()
        await websocket.send_str("anybody?")
        message = await websocket.receive()

    assert message.type is WSMsgType.CLOSE
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_learns_that_a_process_died_which_took_nothing_in_any_more(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = asyncio.Event()

    async def take_nothing_in(websocket: web.WebSocketResponse) -> None:
        await far.take_nothing_in(full)

    far = Far(short_folder, take_nothing_in)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        await _fill(websocket)
        full.set()
        message = await websocket.receive()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_client_is_cut_off_from_a_process_that_takes_nothing_in(short_folder: Path) -> None:
    over = asyncio.Event()

    async def take_nothing_in(websocket: web.WebSocketResponse) -> None:
        await far.take_nothing_in(over)

    far = Far(short_folder, take_nothing_in, stuck_limit_s=0.1)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        await _fill(websocket)
        message = await websocket.receive()
        over.set()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_client_that_takes_nothing_in_is_cut_off_and_the_process_learns_it(short_folder: Path) -> None:
    heard: asyncio.Future[WSMessage] = asyncio.get_running_loop().create_future()

    async def talk(websocket: web.WebSocketResponse) -> None:
        saying = asyncio.create_task(_fill(websocket))
        heard.set_result(await websocket.receive())
        await saying

    async with Far(short_folder, talk, stuck_limit_s=0.1).client() as client:
        websocket = await client.ws_connect("/call")
        transport = _transport(websocket)
        transport.pause_reading()
        message = await heard
        transport.abort()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_message_that_is_too_big_ends_the_connection_for_that_reason(short_folder: Path) -> None:
    heard: asyncio.Future[WSMessage] = asyncio.get_running_loop().create_future()

    async def listen(websocket: web.WebSocketResponse) -> None:
        heard.set_result(await websocket.receive())

    async with Far(short_folder, listen).client() as client, client.ws_connect("/call", max_msg_size=0) as websocket:
        with contextlib.suppress(ConnectionError):  # it may be told before all is sent
            await websocket.send_bytes(bytes(5 * 1024 * 1024))
        message = await heard

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.MESSAGE_TOO_BIG)


async def test_what_is_offered_in_vain_is_not_logged(short_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = Far(short_folder, echo, protocols=[])
    async with far.client() as client, client.ws_connect("/call", protocols=["key.secret"]) as websocket:
        await websocket.send_str("hello")
        assert await websocket.receive_str() == "hello"
        logged = [record.getMessage() for record in caplog.records]

    assert websocket.protocol is None
    # The process itself may say so: it is the one that answers.
    assert sum("secret" in text for text in logged) <= 1


@pytest.mark.parametrize("key", ["", "short", "sch\u00f6n\u00f6n\u00f6n\u00f6n\u00f6n=="])
async def test_a_malformed_handshake_is_refused_before_the_process_is_asked(short_folder: Path, key: str) -> None:
    far = Far(short_folder, echo)
    async with far.client() as client, client.get("/call", headers=_UPGRADE | {"Sec-WebSocket-Key": key}) as response:
        assert response.status == 400

    assert far.requests == []


async def test_the_client_gets_the_refusal_of_the_process(short_folder: Path) -> None:
    async with Far(short_folder, echo).client() as client:
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/forbidden")
        async with client.get("/forbidden", headers=_UPGRADE) as response:
            text = await response.text()

    assert (refused.value.status, text, response.headers["Retry-After"]) == (403, "not you", "7")


async def test_a_process_that_is_not_there_opens_nothing(short_folder: Path) -> None:
    way = Proxy(short_folder / "nobody.sock")

    async def ask(request: web.Request) -> web.StreamResponse:
        with pytest.raises(PeerGoneError, match=r"nobody\.sock"):
            await way.tunnel(request, request.headers)
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/", ask)
    async with TestClient(TestServer(app)) as client, client.get("/", headers=_UPGRADE) as response:
        assert response.status == 404
    await way.close()


async def test_an_ordinary_request_is_no_websocket() -> None:
    async def ask(request: web.Request) -> web.Response:
        return web.Response(text=str(is_websocket(request)))

    app = web.Application()
    app.router.add_get("/", ask)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert await response.text() == "False"


_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


async def _fill(websocket: web.WebSocketResponse | ClientWebSocketResponse) -> None:
    """Send until no more is taken in, or the connection has ended."""
    noise = random.Random(0).randbytes(100_000)  # cannot be compressed
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            await asyncio.wait_for(websocket.send_bytes(noise), 0.2)


def _transport(websocket: ClientWebSocketResponse) -> asyncio.Transport:
    connection = websocket._response.connection
    assert connection is not None
    assert isinstance(connection.transport, asyncio.Transport)
    return connection.transport
