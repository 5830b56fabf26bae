"""The way to another media process of this server: requests whole, WebSockets message by message.

Of a WebSocket pings and pongs are passed on as well: each end learns from the other, and not from us, whether it is
still there. Whoever reads slowly makes the other end wait.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from media_server.errors import PeerGoneError

ANSWER_LIMIT_S = 15.0

_AT_ONCE = 100
"""Requests; more wait, since a Unix socket refuses what goes beyond its queue, which has 128 places in asyncio."""

_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "upgrade"}
_HANDSHAKE = "sec-websocket-"
"""So begin the headers of a handshake (RFC 6455 section 11.3): each of the two connections has its own."""

_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def is_websocket(request: web.Request) -> bool:
    """Return whether a request asks for a WebSocket."""
    return web.WebSocketResponse().can_prepare(request).ok


class Proxy:
    """The way to one process. To be made within the loop."""

    def __init__(self, socket: Path) -> None:
        """Know the way; the process need not be there yet. `socket`: the Unix socket on which it listens."""
        self._requests = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket), limit=_AT_ONCE), auto_decompress=False
        )
        self._websockets = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket), limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(sock_connect=ANSWER_LIMIT_S, sock_read=ANSWER_LIMIT_S),
            raise_for_status=_raise_refusal,
        )

    async def close(self) -> None:
        """End all that is under way."""
        await self._requests.close()
        await self._websockets.close()

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, limit_s: float = ANSWER_LIMIT_S
    ) -> web.Response:
        """Return what the process answers.

        Raises:
            PeerGoneError: it does not, or not within `limit_s`.
        """
        limit = aiohttp.ClientTimeout(limit_s)
        try:
            async with self._requests.request(
                method, f"http://media{path}", headers=_kept(headers), data=body, timeout=limit
            ) as answer:
                return await _copy(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerGoneError(f"{type(error).__name__}: {error}") from error

    async def tunnel(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        """Join a request for a WebSocket with the process, until one of them ends it. Cancellation ends both ways.

        Args:
            request: as it came.
            headers: for the process, without those of the handshake.

        Returns:
            What was answered: the WebSocket, ended; or the refusal of the process.

        Raises:
            PeerGoneError: the process does not answer.
        """
        names = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = [name.strip() for name in names.split(",") if name.strip()]
        try:
            far = await self._websockets.ws_connect(
                f"http://media{request.path_qs}", protocols=protocols, headers=_kept(headers), autoping=False
            )
        except _RefusedError as refused:
            return refused.answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerGoneError(f"{type(error).__name__}: {error}") from error
        try:
            near = web.WebSocketResponse(protocols=[far.protocol] if far.protocol else [], autoping=False)
            await near.prepare(request)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_pass_on(near, far))
                ways.create_task(_pass_on(far, near))
        finally:
            await far.close(code=WSCloseCode.GOING_AWAY)
        return near


class _RefusedError(Exception):
    """The process opens no WebSocket."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


async def _raise_refusal(answer: aiohttp.ClientResponse) -> None:
    if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
        raise _RefusedError(await _copy(answer))


async def _copy(answer: aiohttp.ClientResponse) -> web.Response:
    return web.Response(status=answer.status, headers=_kept(answer.headers), body=await answer.read())


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Return those headers that are not about the connection on which they came."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in _HOP_BY_HOP and not name.lower().startswith(_HANDSHAKE)
    }


async def _pass_on(source: _WebSocket, sink: _WebSocket) -> None:
    """Pass on what comes from `source` until one of them is closed; then the other is closed in the same words."""
    try:
        while True:
            message = await source.receive()
            match message.type:
                case WSMsgType.TEXT:
                    await sink.send_str(message.data)
                case WSMsgType.BINARY:
                    await sink.send_bytes(message.data)
                case WSMsgType.PING:
                    await sink.ping(message.data)
                case WSMsgType.PONG:
                    await sink.pong(message.data)
                case WSMsgType.CLOSE:
                    await sink.close(code=message.data or WSCloseCode.OK, message=(message.extra or "").encode())
                    return
                case _:  # gone without a word, or with what is no message
                    await sink.close(code=WSCloseCode.GOING_AWAY)
                    return
    except ConnectionResetError:
        await source.close(code=WSCloseCode.GOING_AWAY)
