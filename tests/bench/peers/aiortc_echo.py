"""A plain aiortc echo, after its examples, to measure ours against: python -m tests.bench.peers.aiortc_echo PORT"""

import sys

import aioice.ice
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from aiortc.mediastreams import MediaStreamTrack

peers: set[RTCPeerConnection] = set()


async def offer(request: web.Request) -> web.Response:
    """Answer an offer: what is heard is sent back."""
    asked = await request.json()
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peers.add(pc)

    @pc.on("connectionstatechange")
    async def change() -> None:
        if pc.connectionState in {"failed", "closed"}:
            await pc.close()
            peers.discard(pc)

    @pc.on("track")
    def take(track: MediaStreamTrack) -> None:
        pc.addTrack(MediaRelay().subscribe(track))

    await pc.setRemoteDescription(RTCSessionDescription(sdp=asked["sdp"], type=asked["type"]))
    await pc.setLocalDescription(await pc.createAnswer())
    return web.json_response({"sdp": pc.localDescription.sdp, "type": pc.localDescription.type})


def main() -> None:
    """Serve on loopback."""
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    app = web.Application()
    app.router.add_post("/offer", offer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
