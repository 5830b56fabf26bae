"""The way to another media process of this server: requests whole, WebSockets message by message.

Of a WebSocket pings and pongs are passed on as well: each end learns from the other, and not from us, whether it is
still there. Whoever reads slowly makes the other end wait; whoever does not read at all is cut off.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType, web

from media_server.errors import BadRequestError, PeerGoneError

logger = logging.getLogger(__name__)

ANSWER_LIMIT_S = 15.0

STUCK_LIMIT_S = 15.0
"""So long may an end take to take a message in. The connection stays: what it holds up is ours, and the other end's."""

_CLOSE_LIMIT_S = 2.0

_AT_ONCE = 100
"""Requests; more wait, since a Unix socket refuses what goes beyond its queue, which has 128 places in asyncio."""

_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "upgrade"}
_HANDSHAKE = "sec-websocket-"
"""So begin the headers of a handshake (RFC 6455 section 11.3): each of the two connections has its own."""

_PROTOCOL = "Sec-WebSocket-Protocol"

_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def is_websocket(request: web.Request) -> bool:
    """Return whether a request asks for a WebSocket (RFC 6455 section 4.1), well or badly."""
    return request.method == "GET" and request.headers.get("Upgrade", "").strip().lower() == "websocket"


class Proxy:
    """The way to one process. To be made within the loop."""

    def __init__(self, socket: Path, *, stuck_limit_s: float = STUCK_LIMIT_S) -> None:
        """Know the way; the process need not be there yet.

        Args:
            socket: the Unix socket on which it listens.
            stuck_limit_s: how long either end of a WebSocket may take to take a message in.
        """
        self._stuck_limit_s = stuck_limit_s
        self._opening = asyncio.Semaphore(_AT_ONCE)
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
        """End all that is under way; a process that takes nothing in any more is not waited for."""
        for session in (self._requests, self._websockets):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.close(), _CLOSE_LIMIT_S)

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
            BadRequestError: the handshake is malformed.
            PeerGoneError: the process does not answer.
        """
        offered = [name.strip() for name in request.headers.get(_PROTOCOL, "").split(",") if name.strip()]
        _check_handshake(request)
        try:
            async with self._opening:
                if self._websockets.closed:
                    raise PeerGoneError("this process is stopping")
                far = await self._websockets.ws_connect(
                    f"http://media{request.path_qs}", protocols=offered, headers=_kept(headers), autoping=False
                )
        except _RefusedError as refused:
            return refused.answer
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerGoneError(f"{type(error).__name__}: {error}") from error
        near = web.WebSocketResponse(protocols=[far.protocol] if far.protocol else [], autoping=False)
        try:
            await near.prepare(_offering(request, far.protocol))
            await _join(near, far, self._stuck_limit_s)
        except (ConnectionError, TimeoutError) as error:
            logger.debug("%s: a WebSocket that was passed on is lost: %r", request.path, error)
        finally:
            try:
                if near.prepared:
                    # A client that takes nothing in is told for ever otherwise.
                    in_s = _CLOSE_LIMIT_S if await _end(near) else 0
                    asyncio.get_running_loop().call_later(in_s, _cut, request)
            finally:
                await _end(far)
        return near if near.prepared else web.Response()


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


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


def _check_handshake(request: web.Request) -> None:
    try:
        well = web.WebSocketResponse().can_prepare(_offering(request, None)).ok
    except ValueError:  # a key that is no ASCII
        well = False
    if not well:
        raise BadRequestError("the handshake of a WebSocket is malformed, wanted that of RFC 6455 section 4.1")


def _offering(request: web.Request, protocol: str | None) -> web.Request:
    """Return the request as if it offered `protocol` alone: aiohttp logs what is offered in vain, and keys may be."""
    headers = request.headers.copy()
    headers.popall(_PROTOCOL, None)
    if protocol is not None:
        headers[_PROTOCOL] = protocol
    return request.clone(headers=headers)


async def _join(near: _WebSocket, far: _WebSocket, stuck_limit_s: float) -> None:
    """Pass on both ways until both ends are closed. Raises what `_pass_on` does."""
    # No TaskGroup: of one that failed, Python 3.11 leaves its task cancelled (`cancelling`), see `_end`.
    ways = [asyncio.ensure_future(_pass_on(*ends, stuck_limit_s)) for ends in ((near, far), (far, near))]
    try:
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


async def _pass_on(source: _WebSocket, sink: _WebSocket, stuck_limit_s: float) -> None:
    """Pass on what comes from `source` until one of them is closed; then the other is closed in the same words.

    Raises:
        ConnectionError: `sink` is gone without a word.
        TimeoutError: it takes nothing in.
    """
    while True:
        message = await source.receive()
        async with asyncio.timeout(stuck_limit_s):
            match message.type:
                case WSMsgType.TEXT:
                    await sink.send_str(message.data)
                case WSMsgType.BINARY:
                    await sink.send_bytes(message.data)
                case WSMsgType.PING:
                    await sink.ping(message.data)
                case WSMsgType.PONG:
                    await sink.pong(message.data)
                case _:
                    code, reason = _last_words(message)
                    await sink.close(code=code, message=reason)
                    return


def _last_words(message: WSMessage) -> tuple[int, bytes]:
    """Return with which code and reason a WebSocket ended."""
    match message.type, message.data:
        case WSMsgType.CLOSE, code:
            return code or WSCloseCode.OK, (message.extra or "").encode()
        case WSMsgType.ERROR, WebSocketError(code=code):
            return code, b""
        case _:
            return WSCloseCode.GOING_AWAY, b""


async def _end(websocket: _WebSocket) -> bool:
    """Close a WebSocket, unless it is; return whether that could be done in time."""
    # A task of its own: aiohttp shares one future between all who wait to send, and one that was given up has cancelled
    # it for the next.
    closing = asyncio.ensure_future(websocket.close(code=WSCloseCode.GOING_AWAY))
    try:
        await asyncio.wait([closing], timeout=_CLOSE_LIMIT_S)
    finally:
        closing.cancel()
    return closing.done() and not closing.cancelled()
