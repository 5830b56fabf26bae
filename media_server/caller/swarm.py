"""One caller of many: sends ready packets in real time, and counts what comes back.

It does as little as a caller can, so that one process stands for hundreds: packets are encoded once for all, nothing
that comes back is decoded (but by the one that measures from mouth to ear), and one timer serves all.

Any server that answers an SDP offer will do:

    /v1/realtime/calls    the offer as it is, the answer as it is: Parley, OpenAI
    .../offer             {"sdp", "type"} both ways: FastRTC, Pipecat, aiortc's examples
"""

import array
import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

from media_server.audio.chunk import FRAME_MS
from media_server.audio.jitter import RtpSound
from media_server.audio.opus import CLOCK_HZ
from media_server.caller.client import CALLS
from media_server.caller.network import Conditions, Network
from media_server.caller.shapes import error_message
from media_server.errors import ClientError, PeerGoneError
from media_server.transport.webrtc.aiortc_private import (
    AIORTC_ERRORS,
    close_sockets,
    drop_unsent,
    end_connecting,
    gather_on,
    hold_connecting,
    shape,
    take_over,
)
from media_server.transport.webrtc.pacing import Pacing

CONNECT_TIMEOUT_S = 20.0
_HANG_UP_LIMIT_S = 2.0
FRAME_TICKS = CLOCK_HZ * FRAME_MS // 1000


class SwarmCaller:
    """One caller.

    Attributes:
        sent: packets.
        arrivals_s, timestamps, sequence: of each packet that came back, in the order in which they came.
        setup_ms: from the offer to the first packet that came back; None: there was none.
    """

    def __init__(
        self,
        url: str,
        payloads: Sequence[bytes],
        pacing: Pacing,
        *,
        begin: int = 0,
        conditions: Conditions | None = None,
        stream: int = 0,
        on_sent: Callable[[int, float], None] | None = None,
        on_packet: Callable[[RtpSound, float], None] | None = None,
    ) -> None:
        """Prepare a call.

        Args:
            url: where offers are taken; an address alone stands for its `/v1/realtime/calls`.
            payloads: 20 ms of Opus each, sent again and again.
            pacing: the timer.
            begin: which payload is sent first, so that not all callers speak at once.
            conditions: of each way of the network; they hold from the first packet on that is sent, for all datagrams:
                the connection is made without them.
            stream: 0 or more; tells this caller's bad luck from another's.
            on_sent: told of each packet that was sent: its number, and when.
            on_packet: told of each packet that came back, and when.
        """
        self.url = url if urlsplit(url).path.strip("/") else url.rstrip("/") + CALLS
        self.sent = 0
        self.arrivals_s = array.array("d")
        self.timestamps = array.array("q")
        self.sequence = array.array("q")
        self.setup_ms: float | None = None
        self._payloads = payloads
        self._begin = begin
        self._pacing = pacing
        self._conditions = conditions
        self._stream = stream
        self._on_connected: Callable[[], None] = lambda: None
        self._on_sent = on_sent
        self._on_packet = on_packet
        self._loop = asyncio.get_running_loop()
        self._offered_s = 0.0
        self._location = ""
        self._last_s = 0.0

    async def call(self, http: aiohttp.ClientSession, on_connected: Callable[[], None]) -> None:
        """Call, and stay until cancelled; then hang up. `on_connected`: told once the first packet has come back.

        Raises:
            ClientError: the server refuses the call; perhaps it is full.
            PeerGoneError: nobody answers, no connection came about, or it was lost.
        """
        self._on_connected = on_connected
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connecting = hold_connecting(self._pc)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._connect(http)
            await self._pacing.keep(self._beat)
        except TimeoutError:
            raise PeerGoneError(f"{self.url}: no answer within {CONNECT_TIMEOUT_S:g} s") from None
        finally:
            await self._hang_up(http)
            await end_connecting(connecting)
            with contextlib.suppress(*AIORTC_ERRORS):
                await self._pc.close()
            close_sockets(self._pc)

    async def _connect(self, http: aiohttp.ClientSession) -> None:
        # The track comes before the channel: aiortc 1.16 closes the shared transport of a channel that came first.
        transceiver = self._pc.addTransceiver("audio", direction="sendrecv")
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        _, self._sender = take_over(transceiver, self._take, lambda _: None, lambda: None)
        self._pc.createDataChannel("oai-events")
        if urlsplit(self.url).hostname in {"127.0.0.1", "localhost"}:
            await gather_on(transceiver, ["127.0.0.1"])
        await self._pc.setLocalDescription(await self._pc.createOffer())
        self._offered_s = self._loop.time()
        answer = await self._offer(http, self._pc.localDescription.sdp)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        except AIORTC_ERRORS as error:
            raise PeerGoneError(f"{self.url}: answered with what is no SDP answer: {answer[:80]!r}") from error
        drop_unsent(self._pc)

    async def _offer(self, http: aiohttp.ClientSession, sdp: str) -> str:
        try:
            if not urlsplit(self.url).path.endswith("/offer"):
                async with http.post(self.url, data=sdp, headers={"Content-Type": "application/sdp"}) as answer:
                    text = await answer.text(errors="replace")
                    self._check(answer, text)
                    self._location = urljoin(self.url, answer.headers.get("Location", ""))
                    return text
            offer = {"sdp": sdp, "type": "offer", "webrtc_id": uuid.uuid4().hex}
            async with http.post(self.url, json=offer) as answer:
                text = await answer.text(errors="replace")
                self._check(answer, text)
                return str(json.loads(text)["sdp"])
        except (aiohttp.ClientError, OSError) as error:
            raise PeerGoneError(f"{self.url}: nobody answers there: {error}") from error
        except (ValueError, KeyError, TypeError):
            raise PeerGoneError(f"{self.url}: answered with what is no SDP answer: {text[:80]!r}") from None

    def _check(self, answer: aiohttp.ClientResponse, text: str) -> None:
        if answer.status >= 400:
            message = error_message(text)
            why = repr(text[:80]) if message is None else message
            raise ClientError(f"{self.url}: the server refused the call with {answer.status}: {why}")

    async def _hang_up(self, http: aiohttp.ClientSession) -> None:
        if self._location:
            # A server that is gone, or too busy, cannot be told.
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with http.delete(self._location, timeout=aiohttp.ClientTimeout(_HANG_UP_LIMIT_S)):
                    pass

    def _beat(self, due_s: float) -> None:
        now_s = self._loop.time()
        if self._pc.connectionState in {"failed", "closed"}:
            raise PeerGoneError(f"{self.url}: the connection failed, or was closed")
        if self.setup_ms is None and now_s - self._offered_s > CONNECT_TIMEOUT_S:
            raise PeerGoneError(f"{self.url}: no sound came back within {CONNECT_TIMEOUT_S:g} s")
        if not self._sender.ready:
            return
        if self.sent == 0 and self._conditions is not None and not self._conditions.clean:
            self._worsen(self._conditions)
        if self.sent:
            # What was missed in a stall of ours is not sent, but its time has passed.
            missed = max(0, round((due_s - self._last_s) * 1000 / FRAME_MS) - 1)
            self._sender.skip(missed * FRAME_TICKS)
            self._begin += missed
        self._last_s = due_s
        number = self._begin + self.sent
        try:
            self._sender.send_packet(self._payloads[number % len(self._payloads)], FRAME_TICKS, marker=self.sent == 0)
        except ConnectionError:
            raise PeerGoneError(f"{self.url}: the connection was lost") from None
        if self._on_sent is not None:
            self._on_sent(number, now_s)
        self.sent += 1

    def _worsen(self, conditions: Conditions) -> None:
        """Send and receive through a bad network from now on; each way has luck of its own."""
        shape(self._pc, Network(conditions, self._stream).arrival_s, Network(conditions, -1 - self._stream).arrival_s)

    def _take(self, packet: RtpSound) -> None:
        now_s = self._loop.time()
        if self.setup_ms is None:
            self.setup_ms = (now_s - self._offered_s) * 1000
            self._on_connected()
        self.arrivals_s.append(now_s)
        self.timestamps.append(packet.timestamp)
        self.sequence.append(packet.sequence_number)
        if self._on_packet is not None:
            self._on_packet(packet, now_s)
