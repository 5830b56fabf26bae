"""One call from the caller's side, over real WebRTC. The command, the tests and the benchmarks all call with it.

    async with CallClient("http://127.0.0.1:8080") as client:
        spoken_s = await client.play(pcm)                                   the loop time of the last sample sent
        reply = await client.wait_for(is_type("response.done"), timeout_s=20)
        first_sound_s = client.ear.first_sound_s(spoken_s)
        await client.resume()                                               the network has changed, the call goes on

Whoever leaves the block has hung up.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.rtcdatachannel import RTCDataChannel
from aiortc.rtcicetransport import parse_stun_turn_uri

from media_server.audio.chunk import Pcm
from media_server.audio.jitter import RtpSound
from media_server.audio.opus import OpusDecoder
from media_server.caller.ear import Ear
from media_server.caller.microphone import Microphone
from media_server.caller.shapes import error_message, find_fault
from media_server.errors import ClientError, PeerGoneError, ServerFullError
from media_server.transport.webrtc.aiortc_private import (
    AIORTC_ERRORS,
    drop_unsent,
    end_connecting,
    gather_on,
    hold_connecting,
    take_over_receiver,
)

logger = logging.getLogger(__name__)

CALLS = "/v1/realtime/calls"
CONNECT_TIMEOUT_S = 15.0
"""From the offer to the open data channel; ICE and DTLS over a bad network take up to 10 s."""

_HANGUP_TIMEOUT_S = 5.0
_CHANNEL = "oai-events"
_RESUME = "Parley-Resume"

WireEvent = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Received:
    """One event of the wire and the loop time at which it came."""

    at_s: float
    event: WireEvent

    @property
    def type(self) -> str:
        """Return the event's type."""
        return str(self.event.get("type", ""))


@dataclass(slots=True)
class SetupTimes:
    """How long it took to get through, in milliseconds from the sending of the offer; None: it did not happen (yet)."""

    answer_ms: float | None = None
    connected_ms: float | None = None
    channel_ms: float | None = None
    first_packet_ms: float | None = None


def is_type(*types: str) -> Callable[[WireEvent], bool]:
    """Return a predicate for `wait_for`: an event of one of these types."""
    return lambda event: event.get("type") in types


class CallClient:
    """One call to a server. An async context manager.

    Attributes:
        url: the server's address.
        ear: what was heard.
        received: every event that came and can be read, in order.
        setup: how long the call took to get through.
        location: the address of the call on the server; empty before there is one.
        call_id: the server's id of the call.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str = "",
        session: dict[str, Any] | None = None,
        on_event: Callable[[Received], None] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        relay_only: bool = False,
    ) -> None:
        """Prepare a call.

        Args:
            url: the server's address.
            api_key: sent as a bearer token; empty: none is sent.
            session: the wire's session settings that the call is to begin with; None: the server's own.
            on_event: told of each event as it comes. What it raises ends the call and is raised by `hang_up`, and
                so by leaving the block.
            connect_timeout_s: from the offer to the open data channel.
            relay_only: go through the server's TURN server even where there is a shorter way.
        """
        self.url = url.rstrip("/")
        self.ear = Ear(OpusDecoder().decode)
        self.received: list[Received] = []
        self.setup = SetupTimes()
        self.location = ""
        self._session = session
        self._on_event = on_event
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connect_timeout_s = connect_timeout_s
        self._relay_only = relay_only
        self._resume_token = ""
        self._news = asyncio.Event()
        self._ended = False
        self._failure: Exception | None = None
        self._offered_s = 0.0

    async def __aenter__(self) -> Self:
        """Call.

        Raises:
            ServerFullError: there is no room; come back later.
            ClientError: the server refuses the call.
            PeerGoneError: nobody answers there, or no connection came about.
        """
        self._http = aiohttp.ClientSession(headers=self._headers)
        try:
            await self._connect()
        except BaseException:
            await self.hang_up()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up."""
        await self.hang_up()

    @property
    def call_id(self) -> str:
        """Return the server's id of the call."""
        return self.location.rpartition("/")[2]

    @property
    def n_received(self) -> int:
        """Return how many events came so far: the mark that `wait_for` takes as `after`."""
        return len(self.received)

    @property
    def ended(self) -> bool:
        """Return whether the call is over."""
        return self._ended

    async def play(self, pcm: Pcm) -> float:
        """Say int16 `pcm`, shape (n,), at 24 kHz, in real time; return the loop time at which its last sample was sent.

        Cancellation silences it.

        Raises:
            PeerGoneError: the call ended before.
        """
        return await self._microphone.play(pcm)

    def send(self, event: WireEvent) -> None:
        """Send a command of the wire.

        Raises:
            PeerGoneError: the data channel is not open.
        """
        if self._channel.readyState != "open":
            raise PeerGoneError(f"{self.url}: the data channel is {self._channel.readyState}, not open")
        self._channel.send(json.dumps(event))

    def say_in_writing(self, text: str) -> None:
        """Send a typed line and ask for a reply."""
        content = [{"type": "input_text", "text": text}]
        self.send({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
        self.send({"type": "response.create"})

    async def wait_for(self, predicate: Callable[[WireEvent], bool], timeout_s: float, *, after: int = 0) -> Received:
        """Return the first event that satisfies `predicate`, leaving out the first `after` events of the call.

        Raises:
            TimeoutError: none came in time.
            PeerGoneError: the call ended first.
        """
        async with asyncio.timeout(timeout_s):
            position = after
            while True:
                while position < len(self.received):
                    if predicate(self.received[position].event):
                        return self.received[position]
                    position += 1
                if self._ended:
                    raise PeerGoneError(f"{self.url}: the call ended")
                await self.wait_for_more(position)

    async def wait_for_more(self, after: int) -> None:
        """Wait until more than `after` events came, or the call ended."""
        while len(self.received) <= after and not self._ended:
            await self._news.wait()

    async def resume(self) -> None:
        """Go on with the same call over a new connection: the network has changed, or the old one was lost.

        What was being said is not: `play` raises PeerGoneError. Events go on in `received`, with those that show the
        conversation so far; cancellation leaves the call without a connection, until it is resumed or hung up.

        Raises:
            ClientError: there is no such call any more, or the server knows of no resuming.
            PeerGoneError: nobody answers there, or no connection came about.
        """
        if not self._resume_token:
            raise ClientError(f"{self.url}: the server gave no {_RESUME} with the call")
        old, connecting = self._peer, self._connecting
        self._microphone.stop()
        self.ear.begin_stream()
        try:
            await self._connect()
        except BaseException:
            self._end()
            raise
        finally:
            await end_connecting(connecting)
            await old.close()

    async def hang_up(self) -> None:
        """End the call: tell the server, then close. Safe to call twice."""
        if self._ended and self._http.closed:
            return
        self._end()
        try:
            if self.location:
                # A server that is gone cannot be told.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    timeout = aiohttp.ClientTimeout(_HANGUP_TIMEOUT_S)
                    async with self._http.post(f"{self.location}/hangup", timeout=timeout):
                        pass
        finally:
            await end_connecting(self._connecting)
            await self._peer.close()
            await self._http.close()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    async def _connect(self) -> None:
        """Make a connection, the first or another one.

        Raises:
            ClientError: the server refuses it.
            PeerGoneError: nobody answers there, or none came about.
        """
        ice_servers: list[RTCIceServer] = []
        self._peer = peer = RTCPeerConnection(
            RTCConfiguration(
                iceServers=ice_servers,  # read by aiortc when the track is added: `_negotiate` fills it before
                iceTransportPolicy=RTCIceTransportPolicy.RELAY if self._relay_only else RTCIceTransportPolicy.ALL,
                bundlePolicy=RTCBundlePolicy.MAX_BUNDLE,
            )
        )
        self._connecting = hold_connecting(peer)
        self._microphone = Microphone()
        self._ended = False
        peer.on("connectionstatechange", lambda: self._note_connection(peer))
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                ice_servers += await self._ask_ice_servers()
                await self._negotiate(peer)
        except TimeoutError:
            raise PeerGoneError(f"{self.url}: no connection within {self._connect_timeout_s:g} s") from None

    async def _negotiate(self, peer: RTCPeerConnection) -> None:
        loop = asyncio.get_running_loop()
        # The track comes before the channel: aiortc 1.16 closes the shared transport of a channel that came first
        # (rtcpeerconnection.py `setRemoteDescription`, where `_bundled` is false).
        peer.addTrack(self._microphone)
        transceiver = peer.getTransceivers()[0]
        codecs = RTCRtpSender.getCapabilities("audio").codecs
        transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType == "audio/opus"])
        self._channel: RTCDataChannel = peer.createDataChannel(_CHANNEL)
        self._channel.on("message", self._take_message)
        self._channel.on("close", lambda: self._end_of(peer))
        self._channel.on("open", self._tell)
        take_over_receiver(transceiver, lambda packet: self._hear(peer, packet))
        loopback = await _loopback_of(urlsplit(self.url).hostname or "")
        if loopback and not self._relay_only:
            await gather_on(transceiver, loopback)
        await peer.setLocalDescription(await peer.createOffer())
        self._offered_s = loop.time()
        answer = await self._post_offer(peer.localDescription.sdp)
        self.setup.answer_ms = self._since_offer_ms()
        try:
            await peer.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        except AIORTC_ERRORS as error:
            raise PeerGoneError(f"{self.url}: answered with what is no SDP answer: {answer[:80]!r}") from error
        drop_unsent(peer)
        while self._channel.readyState != "open":
            if self._ended:
                raise PeerGoneError(f"{self.url}: the connection failed")
            await self._news.wait()
        self.setup.channel_ms = self._since_offer_ms()

    async def _ask_ice_servers(self) -> list[RTCIceServer]:
        """Return the server's STUN and TURN servers; none if it does not know the question."""
        try:
            async with self._http.get(f"{self.url}/v1/realtime/ice_servers") as answer:
                text = await answer.text(errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            raise PeerGoneError(f"{self.url}: nobody answers there: {error}") from error
        if answer.status != 200:
            return []
        try:
            return _read_ice_servers(text)
        except ValueError as error:
            raise PeerGoneError(f"{self.url}: answered with what are no ICE servers: {error}") from error

    async def _post_offer(self, sdp: str) -> str:
        body: Any
        where = self.url + CALLS
        if self.location:
            where = f"{self.location}/resume"
            body, headers = sdp, {"Content-Type": "application/sdp", _RESUME: self._resume_token}
        elif self._session is None:
            body, headers = sdp, {"Content-Type": "application/sdp"}
        else:
            fields = {"sdp": sdp, "session": json.dumps(self._session)}
            body, headers = aiohttp.FormData(fields, default_to_multipart=True), {}
        try:
            async with self._http.post(where, data=body, headers=headers) as answer:
                text = await answer.text(errors="replace")
                if answer.status >= 400:
                    raise _refusal(self.url, answer.status, answer.headers.get("Retry-After", ""), text)
                if self.location:
                    return text
                # Only the id is taken: a proxy that strips a path from our requests does not put it into the answers.
                call_id = answer.headers.get("Location", "").rstrip("/").rpartition("/")[2]
                self.location = f"{self.url}/v1/realtime/calls/{call_id}" if call_id else ""
                self._resume_token = answer.headers.get(_RESUME, "")
                return text
        except (aiohttp.ClientError, OSError) as error:
            raise PeerGoneError(f"{self.url}: nobody answers there: {error}") from error

    def _hear(self, peer: RTCPeerConnection, packet: RtpSound) -> None:
        if peer is not self._peer:
            return
        now_s = asyncio.get_running_loop().time()
        if self.setup.first_packet_ms is None:
            self.setup.first_packet_ms = self._since_offer_ms()
        self.ear.hear(packet.payload, packet.sequence_number, packet.timestamp, now_s)

    def _take_message(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            event = None
        fault = find_fault(event)
        if fault:
            logger.warning("%s: the server sent what cannot be read, it is left out: %s", self.url, fault)
            return
        received = Received(asyncio.get_running_loop().time(), event)
        self.received.append(received)
        self._tell()
        if self._on_event is None or self._failure is not None:
            return
        try:
            self._on_event(received)
        except Exception as error:
            # Raised here, it would close aiortc's connection, as if the server had hung up.
            self._failure = error
            self._end()

    def _note_connection(self, peer: RTCPeerConnection) -> None:
        state = peer.connectionState
        if state == "connected" and self.setup.connected_ms is None:
            self.setup.connected_ms = self._since_offer_ms()
        elif state in {"failed", "closed"}:
            self._end_of(peer)

    def _end_of(self, peer: RTCPeerConnection) -> None:
        """The connection has ended, and with it the call, if no other one has taken its place."""
        if peer is self._peer:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._microphone.stop()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _since_offer_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self._offered_s) * 1000


def _refusal(url: str, status: int, retry_after: str, body: str) -> ClientError | PeerGoneError:
    message = error_message(body)
    if message is None:
        message = body.strip()[:80] or "no reason given"
    if status == 503:
        return ServerFullError(f"{url}: {message}", retry_after_s=int(retry_after) if retry_after.isdigit() else 1)
    if status >= 500:
        return PeerGoneError(f"{url}: the server failed with {status}: {message}")
    return ClientError(f"{url}: the server refused the call with {status}: {message}")


async def _loopback_of(host: str) -> list[str]:
    """Return the loopback addresses of a host that has no others: aiortc gathers none there."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return []
    addresses = {ipaddress.ip_address(entry[4][0]) for entry in found}
    if not all(address.is_loopback for address in addresses):
        return []
    return ["127.0.0.1" if version == 4 else "::1" for version in sorted({each.version for each in addresses})]


def _read_ice_servers(text: str) -> list[RTCIceServer]:
    """Return the servers that aiortc can ask; it takes the first STUN and the first TURN server.

    Raises:
        ValueError: it is no JSON, or none that tells of servers.
    """
    try:
        return [
            RTCIceServer(
                urls=[url for url in server["urls"] if _is_known(url)],
                username=server.get("username"),
                credential=server.get("credential"),
            )
            for server in json.loads(text)["ice_servers"]
        ]
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"wanted ice_servers with urls: {error}") from error


def _is_known(url: str) -> bool:
    try:
        parse_stun_turn_uri(url)
    except ValueError:
        return False
    return True
