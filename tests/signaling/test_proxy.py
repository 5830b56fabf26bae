"""What is passed on to another process, above all WebSockets."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMessage, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestClient, TestServer

from media_server.errors import PeerGoneError
from signaling.proxy import Proxy, is_websocket

Talk = Callable[[web.WebSocketResponse], Awaitable[None]]


class Server(TestServer):
    """Lets a handler go on when its client is gone, as `serve` does."""

    async def _make_runner(self, **options: Any) -> web.BaseRunner:
        return await super()._make_runner(**(options | {"handler_cancellation": False}))


class Far:
    """A process that opens WebSockets on a Unix socket, and a client of another that passes on to it."""

    def __init__(self, folder: Path, talk: Talk) -> None:
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
        self._proxy = Proxy(self._socket)
        try:
            async with TestClient(Server(near)) as client:
                yield client
        finally:
            await self._proxy.close()
            await self.die()

    async def die(self) -> None:
        """End the process that opens WebSockets."""
        await self._runner.cleanup()

    async def _open(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/forbidden":
            return web.Response(status=403, text="not you", headers={"Retry-After": "7"})
        websocket = web.WebSocketResponse(protocols=["second", "third"], autoping=False)
        await websocket.prepare(request)
        await self._talk(websocket)
        return websocket

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert is_websocket(request)
        return await self._proxy.tunnel(request, request.headers)


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
        _cut(websocket)
        message = await heard

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_client_learns_that_the_process_is_gone_without_a_word(short_folder: Path) -> None:
    async def vanish(websocket: web.WebSocketResponse) -> None:
        request = far.requests[0]
        assert request.transport is not None
        request.transport.abort()

    far = Far(short_folder, vanish)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        message = await websocket.receive()

    assert (message.type, message.data) == (WSMsgType.CLOSE, WSCloseCode.GOING_AWAY)


async def test_a_message_for_a_process_that_is_gone_ends_the_connection_and_nothing_else(
    short_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()

    async def vanish(websocket: web.WebSocketResponse) -> None:
        request = far.requests[0]
        assert request.transport is not None
        request.transport.abort()
        gone.set()

    far = Far(short_folder, vanish)
    async with far.client() as client, client.ws_connect("/call") as websocket:
        await gone.wait()
        await websocket.send_str("anybody?")
        message = await websocket.receive()

    assert message.type is WSMsgType.CLOSE
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


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


def _cut(websocket: ClientWebSocketResponse) -> None:
    """Let a connection be gone without a word."""
    connection = websocket._response.connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()
