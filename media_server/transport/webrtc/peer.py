"""A caller's WebRTC connection: answers an offer, then carries sound both ways until one side goes.

    new --answer--> answered --run--> connecting --> talking --> closed
                                          |             |-- the peer said goodbye, or is silent for `gone_after_s`
                                          |             '-- restart: other addresses, the same connection
                                          '-- not connected within `connect_timeout_s`

One beat of 20 ms does it all (pacing.py): a packet goes out, the ear's clock advances, and we look whether the peer is
there.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from media_server.audio.chunk import FRAME_MS, FRAME_SAMPLES
from media_server.audio.dtmf import DigitReader
from media_server.audio.jitter import JitterCounts, RtpSound
from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.config import WebRtcConfig
from media_server.errors import BadRequestError, ConfigError, ParleyError, PeerGoneError
from media_server.events import Channel, DigitPressed, Wire
from media_server.metrics import Metrics
from media_server.transport.webrtc.aiortc_private import (
    AIORTC_ERRORS,
    addresses_for,
    choose_codec,
    choose_events,
    close_sockets,
    drop_unsent,
    end_connecting,
    gather_on,
    guard,
    hold_connecting,
    restart_ice,
    take_apart,
    take_over,
    watch_goodbye,
)
from media_server.transport.webrtc.data_channel import DataChannel
from media_server.transport.webrtc.inbound import DECODERS, Inbound
from media_server.transport.webrtc.outbound import ENCODERS, Outbound
from media_server.transport.webrtc.pacing import Pacing

logger = logging.getLogger(__name__)

CHANNEL_LABEL = "oai-events"

_CODECS: dict[str, dict[str, Any]] = {
    # RFC 7587 section 6.1: browsers send their copies of lost packets only to those who ask for them.
    "opus": {"minptime": 10, "useinbandfec": 1, "stereo": 0},
    "g722": {},
    "pcmu": {},
    "pcma": {},
}
_CLOSE_LIMIT_S = 2.0
_SENDS = ("sendrecv", "sendonly")

FIGURES = {
    "received": "packets_received_total",
    "lost": "packets_lost_total",
    "late": "packets_late_total",
    "duplicate": "packets_duplicate_total",
    "malformed": "packets_malformed_total",
    "concealed_ms": "sound_concealed_ms",
    "filled_ms": "sound_filled_ms",
    "left_out_ms": "sound_left_out_ms",
    "restarts": "stream_restarts_total",
}
"""As which figures the `JitterCounts` of all connections add up."""

_COUNT_EVERY_S = 1.0


class WebRtcPeer:
    """The far end of one WebRTC connection, as a `Media`.

    Attributes:
        counts: what happened to the packets received so far.
        on_digit: told of each key that the peer presses; nobody is, until it is set.
    """

    def __init__(
        self,
        config: WebRtcConfig,
        *,
        bind_host: str,
        wire: Callable[[], Wire],
        on_channel: Callable[[Channel], None],
        pacing: Pacing,
        metrics: Metrics,
    ) -> None:
        """Make a connection that waits for its offer. To be called on the event loop.

        Args:
            config: limits and codec settings.
            bind_host: the address that media binds to; a wildcard stands for all of this machine.
            wire: makes the wire of a data channel.
            on_channel: told of the data channel `oai-events` when the peer opens it.
            pacing: the timer of the process.
            metrics: told once a second, and at the end, what happened to the packets.
        """
        self._config = config
        self._bind_host = bind_host
        self._wire = wire
        self._on_channel = on_channel
        self._pacing = pacing
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._pc.on("connectionstatechange", self._on_state)
        self._pc.on("datachannel", self._on_data_channel)
        self._connecting = hold_connecting(self._pc)
        self._restarts: list[asyncio.Task[None]] = []
        self._transceiver = self._pc.addTransceiver("audio", direction="sendrecv")
        self._receiver, self._sender = take_over(self._transceiver, self._on_packet, self._on_event, self._on_heard)
        watch_goodbye(self._transceiver, self._on_goodbye)
        self._codec = "opus"
        self._digits: DigitReader | None = None
        self._inbound: Inbound | None = None
        self._channel: DataChannel | None = None
        self._settled = asyncio.Event()
        self._heard_s = 0.0
        self._goodbye = False
        self._closed = False
        self.counts = JitterCounts()
        self._counted = JitterCounts()
        self._sent = 0
        self.on_digit: Callable[[DigitPressed], None] = lambda _: None

    @property
    def rtt_ms(self) -> float | None:
        """Return the round-trip time as the peer's reports tell it; None while there were none."""
        return None if self._closed else self._sender.rtt_ms

    @property
    def heard_s(self) -> float:
        """Return the loop time of the peer's last sign of life, RTP or RTCP."""
        return self._heard_s

    async def answer(self, offer_sdp: str) -> str:
        """Return the answer to an offer (validated before), with all candidates in it.

        Raises:
            BadRequestError: aiortc refuses the offer, or it has no codec that we speak. The connection is closed.
            ServerFullError: no UDP port is free, or no socket.
            ConfigError: the configured address cannot be bound.
        """
        try:
            return await self._answer(offer_sdp)
        except AIORTC_ERRORS as error:
            await self.close()
            raise BadRequestError(f"the offer cannot be answered: {error or type(error).__name__}") from error
        except ParleyError:
            await self.close()
            raise

    async def restart(self, offer_sdp: str) -> str | None:
        """Return the answer to an offer (validated before) that tells of new addresses of the same connection.

        Sound keeps its path until another is found. None: the offer is another connection's, or this one is gone.

        Raises:
            BadRequestError: the offer cannot be read.
        """
        while self._restarts:  # of two the later one counts; another may have begun while we waited
            await end_connecting(self._restarts)
            self._restarts = [task for task in self._restarts if not task.done()]
        if self._closed or self._pc.connectionState != "connected":
            return None
        try:
            begun = await restart_ice(self._pc, self._transceiver, offer_sdp, self._config.connect_timeout_s)
        except AIORTC_ERRORS as error:
            raise BadRequestError(f"the offer cannot be answered: {error or type(error).__name__}") from error
        if begun is None:
            return None
        answer, task = begun
        self._restarts.append(task)
        return answer

    async def connect(self) -> None:
        """Wait until the connection stands.

        Raises:
            PeerGoneError: it did not come about within `connect_timeout_s`.
        """
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await self._settled.wait()
        except TimeoutError:
            raise PeerGoneError(f"the peer did not connect within {self._config.connect_timeout_s:g} s") from None
        self._check_open()

    async def run(self, sound_in: LiveQueue, playout: Playout) -> None:
        """Carry sound both ways until the peer says goodbye; then close the connection, whatever the reason.

        Raises:
            PeerGoneError: the peer never connected, fell silent, or was lost.
        """
        try:
            await self.connect()
            await self._talk(sound_in, playout)
        except PeerGoneError:
            if not self._goodbye:
                raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection and all that belongs to it, within two seconds. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._count()
        self._settled.set()
        if self._channel is not None:
            await self._channel.close()
        try:
            # Not asyncio.timeout: see engines/workers/pool.py, `_end_all`.
            await asyncio.wait_for(self._end(), _CLOSE_LIMIT_S)
        except AIORTC_ERRORS as error:  # TimeoutError is an OSError
            logger.warning("closing a peer connection failed: %s: %s", type(error).__name__, error)
        finally:
            close_sockets(self._pc)
            take_apart(self._pc)

    # --- inside ---

    async def _end(self) -> None:
        await end_connecting([*self._connecting, *self._restarts])
        await self._pc.close()

    async def _answer(self, offer_sdp: str) -> str:
        await self._pc.setRemoteDescription(RTCSessionDescription(sdp=offer_sdp, type="offer"))
        guard(self._pc)
        drop_unsent(self._pc)
        self._codec = choose_codec(self._transceiver, _CODECS)
        events_hz = choose_events(self._pc, self._transceiver)
        self._digits = None if events_hz is None else DigitReader(events_hz)
        addresses = addresses_for(self._bind_host)
        ports = range(self._config.port_min, self._config.port_max + 1)  # 0 to 0: any
        if not await gather_on(self._transceiver, addresses, ports=ports, announce=self._config.announce):
            raise ConfigError(f"webrtc.bind: media cannot bind to {', '.join(addresses)}, wanted addresses of ours")
        await self._pc.setLocalDescription(await self._pc.createAnswer())
        sdp: str = self._pc.localDescription.sdp
        return sdp

    async def _talk(self, sound_in: LiveQueue, playout: Playout) -> None:
        started_s = self._loop.time()
        self._heard_s = started_s
        self._inbound = Inbound(
            DECODERS[self._codec](), sound_in, wait_limit_ms=self._config.wait_limit_ms, started_s=started_s
        )
        self.counts = self._inbound.counts
        outbound = Outbound(ENCODERS[self._codec](self._config))
        sends = self._transceiver.currentDirection in _SENDS
        inbound = self._inbound
        last_s = counted_s = started_s

        def beat(due_s: float) -> None:
            nonlocal last_s, counted_s
            self._check_open()
            now_s = self._loop.time()
            self._check_heard(now_s)
            inbound.advance(now_s)
            if self._digits is not None:
                self._tell(self._digits.advance(now_s))
            # What was missed in a stall is not sent, but its time has passed (RFC 3550 section 5.1: the timestamp).
            self._sender.skip((round((due_s - last_s) * 1000 / FRAME_MS) - 1) * outbound.n_ticks)
            last_s = due_s
            outbound.expect_loss(self._sender.lost_share, now_s)
            if self._sender.ready or not sends:
                out = outbound.packet(playout.read(FRAME_SAMPLES), playout.ready)
                try:
                    self._sender.send_packet(out.payload, outbound.n_ticks, marker=out.onset)
                except ConnectionError:
                    raise PeerGoneError("the connection was lost") from None
                self._sent += self._sender.ready
            if now_s - counted_s >= _COUNT_EVERY_S:
                counted_s = now_s
                self._count()

        await self._pacing.keep(beat)

    def _count(self) -> None:
        """Let the figures grow by what has happened since the last time."""
        malformed = self.counts.malformed + self._receiver.malformed
        if self._digits is not None:
            malformed += self._digits.malformed
        counts = replace(self.counts, malformed=malformed)
        for name, figure in FIGURES.items():
            self._metrics.count(figure, getattr(counts, name) - getattr(self._counted, name))
        self._counted = counts
        # A report tells of the time since the one before it: its share goes for as many packets as we send meanwhile.
        self._metrics.count("packets_sent_total", self._sent)
        self._metrics.count("packets_sent_lost_total", self._sent * self._sender.lost_share)
        self._sent = 0

    def _check_open(self) -> None:
        if self._closed:
            raise PeerGoneError("the connection was closed")
        if self._pc.connectionState == "failed":
            raise PeerGoneError("the connection could not be made, or was lost")
        if self._pc.connectionState != "connected":
            raise PeerGoneError("the peer closed the connection")

    def _check_heard(self, now_s: float) -> None:
        if now_s - self._heard_s > self._config.gone_after_s:
            raise PeerGoneError(f"nothing was heard from the peer for {self._config.gone_after_s:g} s")

    def _on_state(self) -> None:
        if self._pc.connectionState in ("connected", "failed", "closed"):
            self._settled.set()

    def _on_goodbye(self) -> None:
        self._goodbye = True

    def _on_heard(self) -> None:
        self._heard_s = self._loop.time()

    def _on_packet(self, packet: RtpSound) -> None:
        self._heard_s = self._loop.time()
        if self._inbound is not None:
            self._inbound.receive(packet, self._heard_s)

    def _on_event(self, packet: RtpSound) -> None:
        self._heard_s = self._loop.time()
        if self._inbound is not None and self._digits is not None:
            self._inbound.pass_over(packet)
            self._tell(self._digits.put(packet, self._heard_s))

    def _tell(self, pressed: list[DigitPressed]) -> None:
        for each in pressed:
            self.on_digit(each)

    def _on_data_channel(self, channel: RTCDataChannel) -> None:
        taken = self._channel is not None and not self._channel.closed
        if channel.label != CHANNEL_LABEL or taken or self._closed:
            channel.close()
            return
        self._channel = DataChannel(channel, self._wire())
        self._on_channel(self._channel)
