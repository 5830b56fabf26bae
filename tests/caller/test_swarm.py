"""One caller of many calls servers that take offers as JSON, too."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from media_server.caller.swarm import SwarmCaller
from media_server.errors import ClientError, PeerGoneError
from media_server.metrics import Metrics
from media_server.transport.webrtc.pacing import Pacing

# As FastRTC 0.0.34 answers when it is full: with status 200.
FULL = {"status": "failed", "meta": {"error": "concurrency_limit_reached", "limit": 1}}


@asynccontextmanager
async def answering(
    path: str, answer: dict[str, Any] | bytes, status: int = 200
) -> AsyncGenerator[tuple[str, list[Any]], None]:
    """Run a server that gives one answer to every offer; give its address, and the offers that came."""
    offers: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        offers.append(await request.json())
        if isinstance(answer, bytes):
            return web.Response(body=answer, status=status)
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_post(path, take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{path}", offers
    finally:
        await runner.cleanup()


async def call(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        await SwarmCaller(url, [b""], Pacing(Metrics())).call(http, lambda: None)


@pytest.mark.parametrize("path", ["/webrtc/offer", "/api/offer"])
async def test_a_path_that_ends_in_offer_gets_json_with_all_that_fastrtc_and_pipecat_ask_for(path: str) -> None:
    async with answering(path, FULL) as (url, offers):
        with pytest.raises(PeerGoneError):
            await call(url)

    assert offers[0]["type"] == "offer"
    assert offers[0]["sdp"].startswith("v=0")
    assert offers[0]["webrtc_id"]


async def test_what_is_no_answer_is_told_as_it_came() -> None:
    async with answering("/webrtc/offer", FULL) as (url, _):
        with pytest.raises(PeerGoneError, match=r"no SDP answer: .*concurrency_limit_reached"):
            await call(url)


@pytest.mark.parametrize(("status", "error"), [(502, ClientError), (200, PeerGoneError)])
async def test_an_answer_that_is_no_utf_8_is_told(status: int, error: type[Exception]) -> None:
    async with answering("/webrtc/offer", "Passerelle défectueuse".encode("latin-1"), status) as (url, _):
        with pytest.raises(error, match=r"Passerelle d.fectueuse"):
            await call(url)


async def test_a_refusal_of_json_is_told_with_its_status() -> None:
    async with answering("/api/offer", {"detail": "no more"}, 503) as (url, _):
        with pytest.raises(ClientError, match=r"503: .*no more"):
            await call(url)
