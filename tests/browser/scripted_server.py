"""A server for the page's tests: real WebRTC and the page's own files, but every event on the wire is sent by the test.

It refuses calls when it is told to, keeps what the page sends, and beats `parley.levels` until it is told to stop. Its
headers, and with them the page's policy, are the real server's.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiortc import AudioStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from signaling.middleware import add_headers

STATIC = Path(__file__).parents[2] / "static"
LEVELS = {
    "type": "parley.levels",
    "caller_dbfs": -40.0,
    "agent_dbfs": -60.0,
    "caller_speaking": False,
    "agent_speaking": False,
}


class ScriptedServer:
    """One call at a time.

    Attributes:
        url: where the page is.
        refuse: what the next calls are answered with instead of 201; None: they are taken.
        ice_servers: what the page is told to use.
        asked: set with the first offer.
        answering: cleared by a test that wants offers to wait for their answer.
        opened: set while a call's channel can be sent on.
        heartbeat: whether `parley.levels` is sent.
        received: the events that the page sent, in order.
        calls: how many calls were taken.
        hangups: the paths of the hang-ups that were asked for.
        hung_up: set with the first of them.
        beaten: set with the first `parley.levels`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.refuse: web.Response | None = None
        self.ice_servers: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.opened = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        self.heartbeat = True
        self.received: list[dict[str, Any]] = []
        self.calls = 0
        self.hangups: list[str] = []
        self.hung_up = asyncio.Event()
        self.beaten = asyncio.Event()
        self._peer: RTCPeerConnection | None = None
        self._channel: RTCDataChannel | None = None

    def send(self, kind: str, **fields: Any) -> None:
        """Send one wire event to the page."""
        assert self._channel is not None
        self._channel.send(json.dumps({"type": kind, **fields}))

    async def hang_up(self) -> None:
        """End the call from the server's side."""
        if self._peer is not None:
            await self._peer.close()

    async def beat(self) -> None:
        """Send levels five times a second."""
        while True:
            await asyncio.sleep(0.2)
            if self.heartbeat and self._channel is not None and self._channel.readyState == "open":
                self._channel.send(json.dumps(LEVELS))
                self.beaten.set()

    async def page(self, _: web.Request) -> web.FileResponse:
        """Serve the page."""
        return web.FileResponse(STATIC / "index.html")

    async def tell_ice_servers(self, _: web.Request) -> web.Response:
        """Tell of STUN and TURN servers."""
        return web.json_response({"ice_servers": self.ice_servers, "ttl_s": 60})

    async def take_call(self, request: web.Request) -> web.Response:
        """Answer an offer."""
        self.asked.set()
        await self.answering.wait()
        if self.refuse is not None:
            refusal, self.refuse = self.refuse, None
            return refusal
        await self.hang_up()
        self.opened.clear()
        self._peer = peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peer.on("datachannel", self._keep)
        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        peer.addTrack(AudioStreamTrack())
        await peer.setLocalDescription(await peer.createAnswer())
        self.calls += 1
        return web.Response(
            status=201,
            text=peer.localDescription.sdp,
            content_type="application/sdp",
            headers={"Location": f"/v1/realtime/calls/rtc_{self.calls}"},
        )

    async def end_call(self, request: web.Request) -> web.Response:
        """Note a hang-up."""
        self.hangups.append(request.path)
        self.hung_up.set()
        return web.Response()

    def _keep(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        self.opened.set()
        channel.on("message", lambda text: self.received.append(json.loads(text)))


@asynccontextmanager
async def serve() -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on a free port of the loopback interface."""
    server = ScriptedServer()
    app = web.Application()
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/", server.page)
    app.router.add_static("/static", STATIC)
    app.router.add_get("/v1/realtime/ice_servers", server.tell_ice_servers)
    app.router.add_post("/v1/realtime/calls", server.take_call)
    app.router.add_post("/v1/realtime/calls/{id}/hangup", server.end_call)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with asyncio.TaskGroup() as tasks:
        beat = tasks.create_task(server.beat(), name="beat")
        try:
            yield server
        finally:
            beat.cancel()
            # An offer that still waits for its answer is refused: it would hold up the clean-up for a minute.
            server.refuse = web.Response(status=503)
            server.answering.set()
            await server.hang_up()
            await runner.cleanup()
