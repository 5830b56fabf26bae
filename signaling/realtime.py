"""The way in: an SDP offer is posted, an SDP answer comes back, and the call lives. As the OpenAI Realtime API has it.

POST    /v1/realtime/calls               the offer, or a form of `sdp` and `session` -> 201, the answer, Location
POST    /v1/realtime/calls/{id}/hangup   -> 200
DELETE  /v1/realtime/calls/{id}          -> 204

Ours, for a caller whose network has changed; the header `Parley-Resume` comes with the 201, and is sent back here,
within the seconds of `Parley-Resume-Within` from when the server has last heard the caller:

POST    /v1/realtime/calls/{id}/resume   an offer -> 200, the answer; 404 if there is no such call (any more)

An offer of the connection that the call has, with new ICE credentials, restarts ICE on it; any other one is a new
connection, which takes the place of the old one once it stands.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from media_server.config import Config
from media_server.errors import BadRequestError, NotFoundError, ServerFullError, UnsupportedError, WarmingUpError
from media_server.events import Settings, merge_settings
from media_server.protocol.realtime_fields import read_json
from media_server.protocol.realtime_session import parse_session
from media_server.session.media import Restartable
from media_server.session.session import Session
from media_server.transport.webrtc.offer import check_offer
from signaling.house import HOUSE, House, Peer
from signaling.middleware import RESUME, RESUME_WITHIN, read_body

logger = logging.getLogger(__name__)

REALTIME = "/v1/realtime"
CALLS = f"{REALTIME}/calls"

ANSWER_LIMIT_S = 10.0
"""How long an answer may take. It is 5 to 50 ms; only a blocked machine takes longer."""

MAX_PARTS = 8
MAX_PART_HEAD_BYTES = 1_000
"""Of a form. A stock client sends two parts, with heads of 50 to 200 bytes."""

_BOUNDARY = re.compile(r';[ \t]*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)  # RFC 2046 section 5.1.1
_NAME = re.compile(rb'[; \t]name=(?:"([^"]{1,64})"|([^\s;"]{1,64}))', re.IGNORECASE)  # RFC 7578 section 4.2
_DISPOSITION = b"content-disposition:"


@dataclass(frozen=True, slots=True)
class _CallRequest:
    """What was posted: the offer, and the changes to the settings of the call that it asks for."""

    sdp: str
    session: Any


def add_routes(app: web.Application) -> None:
    """Add the routes of calls."""
    app.router.add_post(CALLS, _create_call)
    app.router.add_post(f"{CALLS}/{{call_id}}/hangup", _hang_up)
    app.router.add_post(f"{CALLS}/{{call_id}}/resume", _resume_call)
    app.router.add_delete(f"{CALLS}/{{call_id}}", _delete_call)


async def _create_call(request: web.Request) -> web.Response:
    house = request.app[HOUSE]
    _check_ready(house)
    asked = await _read_request(request, house.body_limit_s)
    offer = check_offer(asked.sdp)
    changes = parse_session(asked.session)
    session = house.manager.admit(merge_settings(_default_settings(house.config), changes))
    answer = await _connect(house, session, offer)
    logger.info("%s: called from %s", session.id, request.remote)
    within_s = house.config.webrtc.gone_after_s + house.config.call.resume_s
    return web.Response(
        status=201,
        text=answer,
        content_type="application/sdp",
        headers={
            "Location": f"{CALLS}/{session.id}",
            RESUME: session.resume_token,
            RESUME_WITHIN: f"{within_s:g}",
        },
    )


async def _resume_call(request: web.Request) -> web.Response:
    house = request.app[HOUSE]
    session = _find_call(request, house)
    if request.content_type != "application/sdp":
        raise UnsupportedError(f"Content-Type: found {request.content_type[:80]!r}, wanted application/sdp")
    offer = check_offer(_text(await read_body(request, house.body_limit_s), "sdp"))
    media = session.media
    answer = await media.restart(offer) if isinstance(media, Restartable) else None
    if answer is not None:
        logger.info("%s: ICE restarted from %s", session.id, request.remote)
    else:
        answer = await _connect_anew(house, session, offer)
        logger.info("%s: called anew from %s", session.id, request.remote)
    return web.Response(text=answer, content_type="application/sdp")


def _find_call(request: web.Request, house: House) -> Session:
    """Return the call that a request may resume. A wrong token is told as a wrong id is: neither can be guessed."""
    call_id = request.match_info["call_id"]
    token = request.headers.get(RESUME, "").encode("utf-8", "surrogateescape")
    session = house.manager.find(call_id)
    if session is None or not secrets.compare_digest(session.resume_token.encode(), token):
        raise NotFoundError(f"there is no call {call_id[:80]!r} with this {RESUME}", param="call_id")
    return session


async def _connect_anew(house: House, session: Session, offer: str) -> str:
    """Answer the offer and give the call the new connection; if that fails, the call stays as it was."""
    if house.state == "stopping":
        raise NotFoundError(f"the call {session.id} is ending", param="call_id")
    async with _answered(house, session, offer) as (peer, answer):
        session.attach_media(peer)
    return answer


async def _hang_up(request: web.Request) -> web.Response:
    await _end_call(request)
    return web.Response(status=200)


async def _delete_call(request: web.Request) -> web.Response:
    await _end_call(request)
    return web.Response(status=204)


async def _end_call(request: web.Request) -> None:
    call_id = request.match_info["call_id"]
    if not await request.app[HOUSE].manager.hang_up(call_id):
        raise NotFoundError(f"there is no call {call_id[:80]!r}", param="call_id")


async def _connect(house: House, session: Session, offer: str) -> str:
    """Answer the offer and let the call live; if that fails, its place is free again."""
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(house.manager.release, session)
        async with _answered(house, session, offer) as (peer, answer):
            _check_ready(house)  # body and answer took their time
            session.attach_media(peer)
            house.manager.start(session)
        on_failure.pop_all()
    return answer


@contextlib.asynccontextmanager
async def _answered(house: House, session: Session, offer: str) -> AsyncGenerator[tuple[Peer, str], None]:
    """Give a connection for a call, and its answer to the offer; it is closed if that, or the block, fails."""
    peer = house.make_peer(session.attach_channel)
    async with contextlib.AsyncExitStack() as on_failure:
        on_failure.push_async_callback(peer.close)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await peer.answer(offer)
        except ServerFullError as error:
            raise ServerFullError(error.message, retry_after_s=house.config.server.retry_after_s) from error
        except TimeoutError:
            logger.warning("%s: not answered within %g s: the machine is blocked", session.id, ANSWER_LIMIT_S)
            message = "the server is too busy to answer"
            raise ServerFullError(message, retry_after_s=house.config.server.retry_after_s) from None
        yield peer, answer
        on_failure.pop_all()


def _check_ready(house: House) -> None:
    if house.state == "stopping":
        raise WarmingUpError("the server is stopping", retry_after_s=house.config.server.retry_after_s)
    if house.state != "ready":
        states = [f"{stage} {state}" for stage, state in house.engines.states().items() if state != "ready"]
        message = f"not ready: {', '.join(state.partition(':')[0] for state in states)}"
        raise WarmingUpError(message, retry_after_s=house.config.server.retry_after_s)


def _default_settings(config: Config) -> Settings:
    return Settings(instructions=config.call.instructions, voice=config.call.voice, language=config.asr.language)


# --- reading the request ---------------------------------------------------------------------------------------------


async def _read_request(request: web.Request, body_limit_s: float) -> _CallRequest:
    kind = request.content_type
    if kind not in {"application/sdp", "multipart/form-data"}:
        raise UnsupportedError(f"Content-Type: found {kind[:80]!r}, wanted application/sdp or multipart/form-data")
    body = await read_body(request, body_limit_s)
    if kind == "application/sdp":
        return _CallRequest(_text(body, "sdp"), {})
    parts = _read_form(request.headers["Content-Type"], body)
    if "sdp" not in parts:
        found = ", ".join(parts)[:80] or "none"
        raise BadRequestError(f"form parts: found {found}, wanted 'sdp' and, if you like, 'session'", param="sdp")
    return _CallRequest(_text(parts["sdp"], "sdp"), _read_session(_text(parts.get("session", b"{}"), "session")))


def _read_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the parts of a form by name. Of two with one name the first counts.

    Raises:
        BadRequestError: it is no form (RFC 7578), or a larger one than a call needs.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise BadRequestError("Content-Type: multipart/form-data without a boundary")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("utf-8", "surrogateescape")
    _, *pieces = (b"\r\n" + body).split(delimiter, MAX_PARTS + 1)
    if not pieces or not pieces[-1].startswith(b"--"):
        raise BadRequestError(
            f"found no form of at most {MAX_PARTS} parts that ends with the boundary of its Content-Type"
        )
    parts: dict[str, bytes] = {}
    for piece in pieces[:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        if not blank or len(head) > MAX_PART_HEAD_BYTES:
            raise BadRequestError(f"a part of the form has no head of at most {MAX_PART_HEAD_BYTES} bytes")
        parts.setdefault(_part_name(head), content)
    return parts


def _part_name(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line[: len(_DISPOSITION)].lower() == _DISPOSITION and (name := _NAME.search(line)) is not None:
            return (name[1] or name[2]).decode("utf-8", "replace")
    raise BadRequestError('a part of the form has no name, wanted Content-Disposition: form-data; name="..."')


def _read_session(text: str) -> Any:
    try:
        return read_json(text)
    except BadRequestError as error:
        raise BadRequestError(f"session: {error.message}", param="session", reason=error.reason) from None


def _text(content: bytes, param: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequestError(f"{param}: found {content[:20]!r}, wanted UTF-8", param=param) from None
