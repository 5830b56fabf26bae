"""A connected call on loopback, plain aiortc at its other end, into which packets are put.

    datagram   into the socket's `datagram_received`, as they are
    stun       the same, signed with the call's password
    srtp       the same, encrypted with the call's keys by the far end
    rtcp       the same
    sctp       the same, as a DTLS record, with its checksum right
    rtp        what stands behind the decryption: no replay protection stops it
    message    a text on the data channel
    knock      as `datagram` or as `stun`, into the socket of a call that is still connecting

While packets are put in, the far end takes nothing but STUN: what we answer to them does not concern it.
"""

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import pylibsrtp
from aiortc.rtcsctptransport import DataChunk, serialize_packet
from OpenSSL import SSL

from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.errors import PeerGoneError
from media_server.events import Channel, ClearSound
from media_server.metrics import Metrics
from media_server.protocol.realtime import RealtimeWire
from media_server.transport.webrtc.aiortc_private import end_connecting, hold_connecting
from media_server.transport.webrtc.data_channel import DataChannel
from media_server.transport.webrtc.offer import check_offer
from media_server.transport.webrtc.peer import WebRtcPeer
from tests.fuzz.templates import OPUS_TYPE, RTP, CallWords, fit
from tests.transport.webrtc.far_end import CONFIG, FarEnd, OnePacing

LIMIT_S = 10.0
KNOCKING_LIMIT_S = 2.0
"""Who knows the password may lead the call astray, and anybody who knows the port may spoil a DTLS handshake."""

_TURNS = 3
"""Of the loop, until what came from the socket has been dealt with."""

_MAX_TURNS = 1_000

_HEADER = struct.Struct("!BBHLL")
_PAYLOADS = [packet[12:] for packet in RTP[4:7]]
_MAX_RECORD = 1_400
_sources = itertools.count(1)


class CallBrokenError(Exception):
    """The call did not survive what it should have."""


class Victim:
    """The call. An async context manager."""

    def __init__(self, knocks: Sequence[bytes] = (), *, signed: bool = False) -> None:
        """To be made on the event loop.

        Args:
            knocks: templates of packets that come while the call is connecting.
            signed: by one who knows the call's password.
        """
        self._knocks = knocks
        self._knock_kind = "stun" if signed else "datagram"
        self.knocked = 0
        self._far = FarEnd(keys_hz=[48_000])
        self._far_connecting = hold_connecting(self._far.pc)
        self._channels: list[Channel] = []
        self._sound_in = LiveQueue(10_000)
        self._pacing = OnePacing(Metrics())
        self._answered = asyncio.Event()
        self._opened = asyncio.Event()
        self._sctp: Any = None
        self._seq = itertools.count(1)
        self.answered = 0
        """Datagrams that we sent, RTP and what the far end gets on its own account left out."""

    async def __aenter__(self) -> Self:
        """Connect, and wait for the data channel and the first sound.

        Raises:
            TimeoutError: it does not connect.
        """
        config = CONFIG.model_copy(update={"gone_after_s": 30})
        self._peer = WebRtcPeer(
            config,
            bind_host="127.0.0.1",
            wire=RealtimeWire,
            on_channel=self._take_channel,
            pacing=self._pacing,
            metrics=Metrics(),
        )
        self._running = asyncio.create_task(self._connect())
        try:
            async with asyncio.timeout(KNOCKING_LIMIT_S if self._knocks else LIMIT_S):
                await self._answered.wait()
                await self._knock()
                await self._far.opened.wait()
                await self._opened.wait()
                await self._sound_in.get()  # the clock runs: the call is heard from now on
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._sctp = self._dtls._data_receiver
        self._channel: Any = self._channels[0]
        self._socket.transport = _Counted(self._socket.transport, self)
        self._far_dtls: Any = self._far.transceiver.sender.transport
        far_socket: Any = self._far_dtls.transport._connection._protocols[0]
        self._address = far_socket.transport.get_extra_info("sockname")
        take = far_socket.datagram_received
        far_socket.datagram_received = lambda data, address: data[:1] < b"\x04" and take(data, address)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up, both ends."""
        self._running.cancel()
        await asyncio.wait([self._running])
        if not self._running.cancelled():
            self._running.exception()
        await self._peer.close()
        await end_connecting(self._far_connecting)
        await self._far.pc.close()

    @property
    def connected(self) -> bool:
        """Return whether the call goes on."""
        return not self._running.done() and self._dtls.state == "connected"

    @property
    def talking(self) -> bool:
        """Return whether the data channel is open, too."""
        channel: DataChannel = self._channel
        return self.connected and not channel.closed and self._sctp._association_state.name == "ESTABLISHED"

    @property
    def words(self) -> CallWords:
        """Return what stands in packets to this call now."""
        sctp, ice = self._sctp, self._ice
        private: Any = self._peer
        far_ice = self._far.transceiver.sender.transport.transport._connection
        return CallWords(
            tag=sctp._local_verification_tag if sctp else 0,
            next_tsn=sctp._last_received_tsn + 1 if sctp else 0,
            acked_tsn=sctp._local_tsn - 1 if sctp else 0,
            source=self._far.transceiver.sender._ssrc,
            our_source=private._sender._ssrc,
            user=f"{ice.local_username}:{far_ice.local_username}",
            password=ice.local_password,
        )

    async def put(self, kind: str, template: bytes) -> bool:
        """Put a packet in, and wait until it is dealt with; return whether it changed anything, or was answered."""
        data = fit(kind, template, self.words)
        before = self._traces()
        if kind == "rtp" and len(data) >= _HEADER.size:
            self._receiver._take(data)
        elif kind == "message":
            self._channel._on_message(data.decode("utf-8", "surrogatepass"))
            taken = bool(self._channel._commands)
            self._channel._commands.clear()
            return taken
        else:
            wrapped = self._wrap(kind, data)
            if wrapped is None:
                return False
            self._socket.datagram_received(wrapped, self._address)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            for _ in range(_MAX_TURNS):
                if not self._ice._queue.qsize() or not self.connected:
                    break
                await asyncio.sleep(0)
        return self._traces() != before

    async def check(self) -> None:
        """See that the call goes on, that what is said on a new stream is heard, and that a command arrives.

        Raises:
            CallBrokenError: it does not.
        """
        if not self.connected:
            ended = self._running.exception() if self._running.done() else None
            if ended is not None and not isinstance(ended, PeerGoneError):
                raise ended
            raise CallBrokenError(f"the call ended: {ended or self._dtls.state}")
        self._sound_in._chunks.clear()
        self._sound_in._held_ms = 0.0
        source = 0xA0000000 + next(_sources)
        for n in range(12):
            packet = _HEADER.pack(0x80, OPUS_TYPE, n, 960 * n, source) + _PAYLOADS[n % len(_PAYLOADS)]
            self._socket.datagram_received(self._far_dtls._tx_srtp.protect(packet), self._address)
        if not any(chunk.pcm.any() for chunk, _ in self._sound_in._chunks):
            raise CallBrokenError("what is said is not heard")
        if not self.talking:
            raise CallBrokenError("the data channel was closed")
        self._channel._commands.clear()
        await self._command()
        if ClearSound(event_id="alive") not in self._channel._commands:
            raise CallBrokenError("a command does not arrive")
        self._channel._commands.clear()

    # --- inside ---

    async def _connect(self) -> None:
        answer = await self._peer.answer(check_offer(await self._far.offer()))
        peer: Any = self._peer
        self._receiver = peer._transceiver.receiver
        self._dtls = self._receiver.transport
        self._ice = self._dtls.transport._connection
        self._socket = self._ice._protocols[0]
        await self._far.accept(answer)
        self._answered.set()
        await self._peer.run(self._sound_in, Playout())

    def _take_channel(self, channel: Channel) -> None:
        self._channels.append(channel)
        self._opened.set()

    async def _knock(self) -> None:
        for template in self._knocks:
            self.knocked += 1
            self._socket.datagram_received(fit(self._knock_kind, template, self.words), ("127.0.0.1", 9))
            await asyncio.sleep(0)

    async def _command(self) -> None:
        chunk = DataChunk(flags=3)
        chunk.tsn = self.words.next_tsn % (1 << 32)
        chunk.stream_id = self._channel._channel.id
        chunk.stream_seq = self._sctp._get_inbound_stream(chunk.stream_id).sequence_number
        chunk.protocol = 51
        chunk.user_data = b'{"type": "input_audio_buffer.clear", "event_id": "alive"}'
        await self.put("sctp", serialize_packet(5000, 5000, self.words.tag, chunk))

    def _wrap(self, kind: str, data: bytes) -> bytes | None:
        """Return the datagram that carries a packet; None: no far end can send it."""
        srtp = self._far_dtls._tx_srtp
        with contextlib.suppress(pylibsrtp.Error, SSL.Error):
            match kind:
                case "srtp" if len(data) >= _HEADER.size:
                    # Twice the same number would be taken for a replay.
                    wrapped: bytes = srtp.protect(data[:2] + (next(self._seq) % (1 << 16)).to_bytes(2) + data[4:])
                    return wrapped
                case "rtcp" if len(data) >= 8:
                    wrapped = srtp.protect_rtcp(data)
                    return wrapped
                case "sctp" if 0 < len(data) <= _MAX_RECORD:
                    self._far_dtls._ssl.send(data)
                    wrapped = self._far_dtls._ssl.bio_read(2_000)
                    return wrapped
                case "datagram" | "stun" | "rtp":
                    return data
        return None

    def _traces(self) -> tuple[object, ...]:
        sctp = self._sctp
        peer: Any = self._peer
        received = (peer._heard_s, peer.counts.received, sctp._last_received_tsn, sctp._last_sacked_tsn)
        return (*received, self.answered, self.talking)


class _Counted:
    """A datagram transport that counts what is sent, RTP left out."""

    def __init__(self, transport: asyncio.DatagramTransport, victim: Victim) -> None:
        self._transport = transport
        self._victim = victim

    def sendto(self, data: bytes, address: Any = None) -> None:
        if data[0] < 128:
            self._victim.answered += 1
        self._transport.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
