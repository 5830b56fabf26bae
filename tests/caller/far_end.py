"""A far end to call in tests: answers with a real aiortc peer, echoes the caller's sound and sends scripted events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack

from media_server.transport.webrtc.aiortc_private import gather_on


@dataclass
class FarEnd:
    """What the far end is to do, and what it saw.

    Attributes:
        greeting: events sent as soon as the channel opens.
        answers: events sent for each command that comes, by the command's type.
        refusal: an HTTP answer instead of a call.
        ice_servers: what it answers when asked for them; None: it does not know the question.
        prefix: the path that a proxy in front of it strips.
    """

    greeting: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refusal: web.Response | None = None
    ice_servers: web.Response | None = None
    prefix: str = ""
    url: str = ""
    commands: list[dict[str, Any]] = field(default_factory=list)
    hung_up: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    offers: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    peers: list[RTCPeerConnection] = field(default_factory=list)
    channels: list[RTCDataChannel] = field(default_factory=list)

    async def answer_call(self, request: web.Request) -> web.Response:
        """Answer an offer."""
        self.headers.append(dict(request.headers))
        if self.refusal is not None:
            return self.refusal
        if request.content_type == "multipart/form-data":
            form = await request.post()
            offer = str(form["sdp"])
            self.sessions.append(str(form["session"]))
        else:
            offer = await request.text()
        self.offers.append(offer)
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.peers.append(peer)

        def echo(track: MediaStreamTrack) -> None:
            peer.addTrack(track)

        peer.on("track", echo)
        peer.on("datachannel", self._take_channel)
        await peer.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
        await gather_on(peer.getTransceivers()[0], ["127.0.0.1"])
        await peer.setLocalDescription(await peer.createAnswer())
        call_id = f"rtc_{len(self.peers)}"
        return web.Response(
            status=201,
            text=peer.localDescription.sdp,
            content_type="application/sdp",
            headers={"Location": f"/v1/realtime/calls/{call_id}"},
        )

    async def tell_ice_servers(self, _: web.Request) -> web.Response:
        """Answer what the test wants."""
        return self.ice_servers or web.Response(status=404)

    async def hang_up(self, request: web.Request) -> web.Response:
        """Note that the caller hung up."""
        self.hung_up.append(request.match_info["call_id"])
        return web.Response()

    def _take_channel(self, channel: RTCDataChannel) -> None:
        self.channels.append(channel)

        def take(message: str) -> None:
            command = json.loads(message)
            self.commands.append(command)
            for event in self.answers.get(command["type"], []):
                channel.send(json.dumps(event))

        channel.on("message", take)
        for event in self.greeting:
            channel.send(json.dumps(event))


@asynccontextmanager
async def far_end(far: FarEnd) -> AsyncGenerator[FarEnd, None]:
    """Run `far` on a free port of the loopback."""
    app = web.Application()
    app.router.add_get(f"{far.prefix}/v1/realtime/ice_servers", far.tell_ice_servers)
    app.router.add_post(f"{far.prefix}/v1/realtime/calls", far.answer_call)
    app.router.add_post(f"{far.prefix}/v1/realtime/calls/{{call_id}}/hangup", far.hang_up)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    far.url = f"http://127.0.0.1:{runner.addresses[0][1]}{far.prefix}"
    try:
        yield far
    finally:
        await asyncio.gather(*(peer.close() for peer in far.peers))
        await runner.cleanup()
