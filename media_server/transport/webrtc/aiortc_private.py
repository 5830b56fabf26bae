"""The private parts of aiortc 1.16 and aioice 0.13 that we touch: all of them stand here, and nowhere else.

    what we do                                          what we touch
    our receiver and sender in the place of aiortc's    RTCRtpTransceiver.__receiver, .__sender
    packets straight to us, no queue, task or thread    aioice StunProtocol.datagram_received, RTCDtlsTransport._rx_srtp
                                                        and ._rtp_router, RTCRtpReceiver.receive, .__codecs, ...
    ready packets out, no track, no encoder, no task    RTCRtpSender._run_rtp, .__packet_count, .__ntp_timestamp, ...,
                                                        RTCDtlsTransport._tx_srtp, ._state, .__tx_packets, .__tx_bytes,
                                                        aioice Connection._nominated
    one codec in the answer, with parameters            RTCRtpTransceiver._codecs
    telephone events beside it                          RTCPeerConnection.__remoteDescription
    candidates on addresses and ports of our choice     aioice StunProtocol, Connection._protocols, ._local_candidates,
                                                        .get_component_candidates (of a TURN server)
    a check may tell no priority                        aioice Connection.request_received
    consent may take its time                           aioice Connection.query_consent, ._nominated,
                                                        ._query_consent_task, .build_request, Transaction
    a path that was not checked to its end              aioice Connection._check_list, CandidatePair
    no handshake with strangers                         aioice Connection._remote_candidates, ._early_checks
    its connecting tasks in our hands                   RTCPeerConnection.__connect
    new ICE credentials and checks on the old sockets   aioice Connection (most of it), StunProtocol.receiver,
                                                        RTCPeerConnection.__remoteDtls, .__remoteDescription
    a goodbye told from a loss                          aioice Connection._closing
    sockets closed for certain                          aioice Connection._protocols
    memory given back at once                           all that they hold, by `take_apart`; pyOpenSSL
                                                        Connection._verify_helper
    what cannot be read is dropped                      StunProtocol.datagram_received, RTCSctpTransport._handle_data,
                                                        ._last_received_tsn, RTCDtlsTransport._handle_rtcp_data
    what comes too late to be sent is dropped           RTCDtlsTransport._send_data

`tests/transport/webrtc/test_aiortc_private.py` fails when one of them changes its shape. aiortc's reports (RTCP) and
statistics stay aiortc's.
"""

import asyncio
import contextlib
import logging
import random
import re
import struct
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import aioice.ice
import pylibsrtp
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import CandidatePair, Connection, StunProtocol
from aioice.stun import Message, Transaction, TransactionError
from aiortc import RTCPeerConnection, RTCRtpTransceiver, clock
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcdtlstransport import RTCDtlsTransport, State
from aiortc.rtcicetransport import candidate_to_aioice
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RTCRtpReceiver, StreamStatistics
from aiortc.rtcrtpsender import RTCRtpSender, random_sequence_number
from aiortc.rtp import AnyRtcpPacket, RtcpRrPacket, RtcpSrPacket, RtpPacket
from aiortc.sdp import SessionDescription
from aiortc.utils import random32
from OpenSSL import SSL

from media_server.audio.jitter import RtpSound
from media_server.audio.wrapping import SEQUENCES, TIMESTAMPS, signed
from media_server.transport.webrtc.addresses import ANY_PORT, announced_for, open_socket
from media_server.transport.webrtc.sctp_gate import is_sound

logger = logging.getLogger(__name__)

AIORTC_ERRORS: tuple[type[Exception], ...] = (
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What aiortc may raise on a bad description and on closing; it has no error of its own for most of it."""

_UNREADABLE: tuple[type[Exception], ...] = (*AIORTC_ERRORS, struct.error)
"""What they may raise on a bad packet."""

_UNSENT: tuple[type[Exception], ...] = (ConnectionError, SSL.Error, AttributeError)
"""What DTLS raises when the connection has ended, ends, or was taken apart."""

_Handler = Callable[[bytes], Coroutine[Any, Any, None]]

_MAX_SOURCES = 4
"""Of more streams than this in one call the oldest is forgotten: each costs memory and a report."""

_LAST_TASKS_S = 1.0

_CLOCK_EVERY = 25
"""Packets between two looks at the wall clock for the sender's reports, which are sent once a second."""

CONSENT_EVERY_S = 5.0
CONSENT_S = 30.0
"""RFC 7675 section 5.1; the pauses are drawn from 0.8 to 1.2 times the former."""

_EVENTS = "telephone-event"  # RFC 4733 section 7.1.1

_RTP_FIXED = struct.Struct("!BBHLL")  # RFC 3550 section 5.1, the first 12 bytes
_STUN = range(4)  # RFC 7983 section 7: the first byte of STUN
_WILDCARDS = ("0.0.0.0", "::")


class RtpReceiver(RTCRtpReceiver):
    """Hands every packet to `on_packet`, or `on_event`, as it comes. Started by aiortc once the connection stands.

    From then on RTP comes straight from the socket: decrypted, read and handed over in one call, where aiortc has a
    queue, a task and an object of forty fields for it (60 us a packet less).
    """

    def __init__(
        self,
        transport: RTCDtlsTransport,
        on_packet: Callable[[RtpSound], None],
        on_event: Callable[[RtpSound], None],
        on_heard: Callable[[], None],
    ) -> None:
        super().__init__("audio", transport)
        self._on_packet = on_packet
        self._on_event = on_event
        self._on_heard = on_heard
        self._event_types: set[int | None] = set()
        self._statistics: dict[tuple[int, int], Any] = {}  # by source and payload type
        self.sockets: list[Any] = []
        self.malformed = 0
        """Packets that are no RTP."""

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Start: as aiortc does, without the decoder thread."""
        private: Any = self
        if private._RTCRtpReceiver__started:
            return
        for codec in parameters.codecs:
            private._RTCRtpReceiver__codecs[codec.payloadType] = codec
            if codec.name == _EVENTS:
                self._event_types.add(codec.payloadType)
        self.transport._register_rtp_receiver(self, parameters)
        private._RTCRtpReceiver__rtcp_task = asyncio.ensure_future(self._run_rtcp())
        private._RTCRtpReceiver__started = True
        self.sockets = _connected_sockets(self.transport)
        for protocol in self.sockets:
            protocol.datagram_received = self._shortcut(protocol.datagram_received)

    def _shortcut(self, datagram_received: Callable[[bytes, Any], None]) -> Callable[[bytes, Any], None]:
        """Return what takes a socket's datagrams: RTP goes to `_take`, all else (STUN, DTLS, RTCP) its old way."""
        transport = self.transport
        take = self._take

        def receive(data: bytes, address: Any) -> None:
            # RFC 7983 section 7, RFC 5761 section 4: which datagram is RTP, by its first two bytes.
            if len(data) < _RTP_FIXED.size or not 127 < data[0] < 192 or 64 <= data[1] & 0x7F < 96:
                datagram_received(data, address)
                return
            try:
                plain = transport._rx_srtp.unprotect(data)
            except pylibsrtp.Error:
                # Forged, sent twice, or of a time before the keys: nothing that should be heard.
                return
            take(plain)

        return receive

    def _take(self, data: bytes) -> None:
        read = read_rtp(data)
        if read is None:
            self.malformed += 1
            return
        self._hear(*read)

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """Take a packet that came aiortc's way: it was read before the shortcut stood."""
        sound = RtpSound(packet.ssrc, packet.sequence_number, packet.timestamp, packet.payload)
        self._hear(packet.payload_type, sound)

    def _hear(self, payload_type: int, sound: RtpSound) -> None:
        statistics = self._statistics.get((sound.ssrc, payload_type)) or self._meet(sound.ssrc, payload_type)
        if statistics is None or not self._enabled:
            self._on_heard()
            return
        statistics.add(sound)
        if payload_type in self._event_types:
            self._on_event(sound)
        else:
            self._on_packet(sound)

    def _meet(self, ssrc: int, payload_type: int) -> Any:
        """Return the statistics of a source, new or not; None: its packets are of no agreed codec."""
        private: Any = self
        codec = private._RTCRtpReceiver__codecs.get(payload_type)
        if codec is None:
            return None
        streams = private._RTCRtpReceiver__remote_streams
        if ssrc not in streams:
            table = self.transport._rtp_router.ssrc_table
            if len(streams) >= _MAX_SOURCES:
                oldest = next(iter(streams))
                del streams[oldest]
                table.pop(oldest, None)
                self._statistics.clear()
            streams[ssrc] = _Statistics(codec.clockRate)
            table[ssrc] = self  # whom the reports of this source are for
        self._statistics[ssrc, payload_type] = streams[ssrc]
        return streams[ssrc]

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        self._on_heard()
        await super()._handle_rtcp_packet(packet)

    async def _send_rtcp(self, packet: AnyRtcpPacket) -> None:
        # aiortc reports on sources that are silent by now as well (RFC 3550 section 6.4: on those heard since the last
        # report), and leaves out how often the numbers have wrapped (section 6.4.1: the upper half of the field).
        if isinstance(packet, RtcpRrPacket):
            private: Any = self
            streams = private._RTCRtpReceiver__remote_streams
            packet.reports = [report for report in packet.reports if streams[report.ssrc].heard_anew()]
            for report in packet.reports:
                report.highest_sequence = (streams[report.ssrc].cycles + report.highest_sequence) % (1 << 32)
        await super()._send_rtcp(packet)


def _connected_sockets(dtls: RTCDtlsTransport) -> list[Any]:
    """Return the sockets of a connection that stands, and let them know. Who only listens has no receiver started."""
    connection = dtls.transport._connection
    _reopen_checks(connection)
    sockets: list[Any] = list(connection._protocols)
    for socket in sockets:
        socket.connected = True
    return sockets


def _reopen_checks(connection: Connection) -> None:
    """Let paths be checked again whose check aioice gave up when it had another: the far end may change over to one.

    It leaves them "in progress" (0.13, ice.py `connect`), and `check_incoming` waits for their end.
    """
    for pair in connection._check_list:
        task = pair.task
        if pair.state == CandidatePair.State.IN_PROGRESS and task is not None and (task.done() or task.cancelling()):
            pair.task = None
            pair.state = CandidatePair.State.WAITING


class _Statistics(StreamStatistics):
    """aiortc's, with a jitter that fits its field (RFC 3550 section 6.4.1): wild timestamps would end the reports."""

    _known = 0

    def heard_anew(self) -> bool:
        """Return whether something came since this was asked before."""
        before, self._known = self._known, self.packets_received
        return self._known != before

    def add(self, packet: Any) -> None:
        if self._last_timestamp is not None:
            # aiortc subtracts the one from the other as they are: a wrap would be a day of jitter.
            self._last_timestamp = packet.timestamp - signed(packet.timestamp - self._last_timestamp, TIMESTAMPS)
        super().add(packet)

    @property
    def jitter(self) -> int:
        return min(super().jitter, (1 << 32) - 1)


def read_rtp(data: bytes) -> tuple[int, RtpSound] | None:
    """Return the payload type of an RTP packet and what of it matters to us; None: it is malformed.

    Args:
        data: decrypted, at least the fixed header.
    """
    flags, marked_type, sequence_number, timestamp, ssrc = _RTP_FIXED.unpack_from(data)
    begin = _RTP_FIXED.size + 4 * (flags & 0x0F)
    end = len(data)
    if flags & 0x10:
        if begin + 4 > end:
            return None
        begin += 4 + 4 * int.from_bytes(data[begin + 2 : begin + 4])
    if flags & 0x20:
        end -= data[-1]
    if begin > end or flags >> 6 != 2:
        return None
    return marked_type & 0x7F, RtpSound(ssrc, sequence_number, timestamp, data[begin:end])


class RtpSender(RTCRtpSender):
    """Sends ready payloads when it is told to. Started by aiortc once the connection stands."""

    def __init__(self, transport: RTCDtlsTransport, on_heard: Callable[[], None]) -> None:
        super().__init__("audio", transport)
        self._on_heard = on_heard
        self._payload_type = 0
        self._sequence_number = random_sequence_number()
        self._timestamp = random32()
        self._extensions = b""
        self.ready = False
        self.lost_share = 0.0
        """Of our packets, as the far end's last report has it, 0 to 1."""

    @property
    def rtt_ms(self) -> float | None:
        """Return the smoothed round-trip time from the far end's reports; None before the first."""
        private: Any = self
        rtt_s: float | None = private._RTCRtpSender__rtt
        return None if rtt_s is None else max(0.0, rtt_s * 1000)

    def send_packet(self, payload: bytes, n_ticks: int, *, marker: bool) -> None:
        """Send one packet; the timestamp of the next lies `n_ticks` later. Does nothing before `ready`.

        Raises:
            ConnectionError: the connection has ended.
        """
        if not self.ready:
            return
        first_byte = 0x90 if self._extensions else 0x80
        header = _RTP_FIXED.pack(
            first_byte, marker << 7 | self._payload_type, self._sequence_number, self._timestamp, self._ssrc
        )
        _send_rtp(self.transport, header + self._extensions + payload)
        private: Any = self
        if private._RTCRtpSender__packet_count % _CLOCK_EVERY == 0:
            private._RTCRtpSender__ntp_timestamp = clock.current_ntp_time()
            private._RTCRtpSender__rtp_timestamp = self._timestamp
        private._RTCRtpSender__octet_count += len(payload)
        private._RTCRtpSender__packet_count += 1
        self._sequence_number = (self._sequence_number + 1) % SEQUENCES
        self._timestamp = (self._timestamp + n_ticks) % TIMESTAMPS

    def skip(self, n_ticks: int) -> None:
        """Let time pass in which nothing is sent."""
        if n_ticks > 0:
            self._timestamp = (self._timestamp + n_ticks) % TIMESTAMPS

    async def _run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        # aiortc starts this when the connection stands, and `stop` cancels it and waits for the second event.
        private: Any = self
        private._RTCRtpSender__rtp_started.set()
        _connected_sockets(self.transport)
        self._payload_type = codec.payloadType or 0
        template = RtpPacket()
        template.extensions.mid = private._RTCRtpSender__mid
        self._extensions = template.serialize(private._RTCRtpSender__rtp_header_extensions_map)[_RTP_FIXED.size :]
        self.ready = True
        try:
            await asyncio.Event().wait()
        finally:
            self.ready = False
            private._RTCRtpSender__rtp_exited.set()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        self._on_heard()
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self.lost_share = report.fraction_lost / 256  # RFC 3550 section 6.4.1
        await super()._handle_rtcp_packet(packet)


def _run_through(sending: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine of aiortc that never waits, without a task."""
    try:
        sending.send(None)
    except StopIteration:
        return
    sending.close()


def _send_rtp(dtls: Any, data: bytes) -> None:
    """Encrypt and send a packet, as `RTCDtlsTransport._send_rtp` does by way of four coroutines that never wait."""
    pair = dtls.transport._connection._nominated.get(1)
    if pair is None or dtls._state is not State.CONNECTED:
        raise ConnectionError("the connection has ended")
    encrypted = dtls._tx_srtp.protect(data)
    pair.protocol.transport.sendto(encrypted, pair.remote_addr)
    dtls._RTCDtlsTransport__tx_bytes += len(encrypted)
    dtls._RTCDtlsTransport__tx_packets += 1


def take_over(
    transceiver: RTCRtpTransceiver,
    on_packet: Callable[[RtpSound], None],
    on_event: Callable[[RtpSound], None],
    on_heard: Callable[[], None],
) -> tuple[RtpReceiver, RtpSender]:
    """Put our receiver and sender in the place of aiortc's, before anything was negotiated.

    Args:
        transceiver: fresh.
        on_packet: gets each packet of the agreed codec.
        on_event: gets each packet that tells of a key; there are none but after `choose_events`.
        on_heard: called at each other sign of life, such as RTCP.
    """
    receiver = RtpReceiver(transceiver.receiver.transport, on_packet, on_event, on_heard)
    sender = RtpSender(transceiver.receiver.transport, on_heard)
    sender._stream_id = transceiver.sender._stream_id
    receiver._set_rtcp_ssrc(sender._ssrc)
    private: Any = transceiver
    private._RTCRtpTransceiver__receiver = receiver
    private._RTCRtpTransceiver__sender = sender
    return receiver, sender


def take_over_receiver(transceiver: RTCRtpTransceiver, on_packet: Callable[[RtpSound], None]) -> None:
    """Put our receiver in the place of aiortc's; its sender stays, and sends a track.

    For a caller: aiortc's own receiver would hide when a packet came, and run a thread.
    """
    receiver = RtpReceiver(transceiver.receiver.transport, on_packet, on_event=lambda _: None, on_heard=lambda: None)
    receiver._set_rtcp_ssrc(transceiver.sender._ssrc)
    private: Any = transceiver
    private._RTCRtpTransceiver__receiver = receiver


def choose_codec(transceiver: RTCRtpTransceiver, preferred: dict[str, dict[str, Any]]) -> str:
    """Leave only the best codec that the offer has, and return its name in lower case.

    Args:
        transceiver: after the remote description was set.
        preferred: name of a codec, in lower case, to what the answer says about it (`a=fmtp`); the best first.

    Raises:
        LookupError: the offer has none of them.
    """
    offered = {codec.name.lower(): codec for codec in reversed(transceiver._codecs)}
    for name, parameters in preferred.items():
        codec = offered.get(name)
        if codec is not None:
            codec.parameters.update(parameters)
            transceiver._codecs = [codec]
            return name
    raise LookupError(f"codecs {', '.join(offered)}, wanted one of {', '.join(preferred)}")


def choose_events(pc: RTCPeerConnection, transceiver: RTCRtpTransceiver) -> int | None:
    """Agree on keys to be sent beside the codec, and return the clock of their packets in Hz; None: none were offered.

    aiortc has no such codec, and forgets that it was offered. To be called after `choose_codec`.
    """
    private: Any = pc
    offer = private._RTCPeerConnection__remoteDescription().media[transceiver._get_mline_index()]
    events = {codec.clockRate: codec for codec in reversed(offer.rtp.codecs) if codec.name.lower() == _EVENTS}
    (codec,) = transceiver._codecs
    clock_hz = next((hz for hz in (codec.clockRate, 8_000) if hz in events), None)
    if clock_hz is None:
        return None
    # aiortc sends with the first of its codecs, and receives all of them.
    transceiver._codecs.append(replace(events[clock_hz], mimeType=f"audio/{_EVENTS}", parameters={"0-15": None}))
    return clock_hz


def addresses_for(bind_host: str) -> list[str]:
    """Return the addresses that media binds to where HTTP binds to `bind_host`."""
    if bind_host in _WILDCARDS:
        found: list[str] = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)
        return found or ["127.0.0.1"]
    return ["127.0.0.1" if bind_host == "localhost" else bind_host]


async def gather_on(
    transceiver: RTCRtpTransceiver, addresses: Sequence[str], *, ports: range = ANY_PORT, announce: Sequence[str] = ()
) -> int:
    """Gather candidates on these addresses alone, and one of the TURN server if `pc` has one; return how many.

    To be called between the two descriptions: aiortc then finds the gathering done.

    Args:
        transceiver: the first of its connection.
        addresses: those that cannot be bound are left out.
        ports: of which each socket gets one.
        announce: told to the far end in place of the bound addresses of the same family. The checks, which go from
            bound addresses, know nothing of it.

    Raises:
        ServerFullError: no port is free, or no socket.
    """
    connection = transceiver.receiver.transport.transport.iceGatherer._connection
    _take_checks_without_priority(connection)
    _be_patient_for_consent(connection)
    connection._local_candidates_start = True
    for address in addresses:
        with contextlib.suppress(OSError):
            connection._local_candidates += await _open_candidates(connection, address, ports, announce)
    connection._local_candidates += await connection.get_component_candidates(component=1, addresses=[])
    connection._local_candidates_end = True
    return len(connection._local_candidates)


async def _open_candidates(
    connection: aioice.ice.Connection, address: str, ports: range, announce: Sequence[str]
) -> list[aioice.Candidate]:
    """Open one socket; return what the far end is told of it."""
    bound = await open_socket(address, ports)
    host, port = bound.getsockname()[:2]
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(lambda: _Socket(connection), sock=bound)
    protocol.local_candidate = _host_candidate(host, port)
    connection._protocols.append(protocol)
    return [_host_candidate(each, port) for each in announced_for(host, announce)]


def _take_checks_without_priority(connection: Any) -> None:
    """Give a check that tells no priority the lowest: aioice 0.13 (ice.py `check_incoming`) takes it to be there."""
    take = connection.request_received

    def request_received(message: Any, address: Any, protocol: StunProtocol) -> None:
        message.attributes.setdefault("PRIORITY", 1)
        take(message, address, protocol)

    connection.request_received = request_received


def _be_patient_for_consent(connection: Any) -> None:
    """Keep consent for as long as RFC 7675 section 5.1 has it: until 30 s have passed without an answer.

    aioice 0.13 (ice.py `query_consent`) forgets a request after 0.5 s, so that a path with a longer round trip loses
    its call after 30 s, though every answer comes.
    """

    async def query_consent() -> None:
        loop = asyncio.get_running_loop()
        answered_s = next_s = loop.time()
        while loop.time() - answered_s < CONSENT_S:
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            next_s = loop.time() + CONSENT_EVERY_S * random.uniform(0.8, 1.2)
            for pair in tuple(connection._nominated.values()):
                with contextlib.suppress(TransactionError):
                    await _ask_once(connection, pair, next_s - loop.time())
                    answered_s = loop.time()
        logger.info("consent was not renewed for %g s", CONSENT_S)
        connection._query_consent_task = None
        await connection.close()

    connection.query_consent = query_consent


async def _ask_once(connection: Any, pair: CandidatePair, limit_s: float) -> None:
    """Send one request, and wait for its answer.

    Raises:
        TransactionError: there was none within the limit, or a refusal.
    """
    key = connection.remote_password.encode()
    request = connection.build_request(pair, nominate=False)
    request.add_message_integrity(key)
    transaction: Any = Transaction(request, pair.remote_addr, pair.protocol, retransmissions=0, integrity_key=key)
    transaction._Transaction__timeout_delay = limit_s
    pair.protocol.transactions[request.transaction_id] = transaction
    try:
        await transaction.run()
    finally:
        del pair.protocol.transactions[request.transaction_id]


class _Socket(StunProtocol):
    """A socket of aioice that drops what aioice and aiortc cannot read: anybody may send to it.

    Until the connection stands, it also drops what comes from addresses that no signed check (RFC 8445 section 7.3) and
    no offer has named: one forged DTLS record would end the handshake.
    """

    connected = False

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        # aiortc looks at the first byte. aioice 0.13 (stun.py `parse_message`) unpacks attributes of any length.
        if not data or not (self.connected or data[0] in _STUN or self._knows(addr[:2])):
            return
        with contextlib.suppress(struct.error):
            super().datagram_received(data, addr)

    def _knows(self, address: tuple[Any, ...]) -> bool:
        connection: Any = self.receiver
        # Not `_check_list`: aioice takes out of it what need not be checked any more.
        return any((each._network_host, each.port) == address for each in connection._remote_candidates) or any(
            early == address for _, early, _ in connection._early_checks
        )


def _host_candidate(host: str, port: int) -> aioice.Candidate:
    return aioice.Candidate(
        foundation=candidate_foundation("host", "udp", host),
        component=1,
        transport="udp",
        priority=candidate_priority(1, "host"),
        host=host,
        port=port,
        type="host",
    )


def guard(pc: RTCPeerConnection) -> None:
    """Drop what the far end sends and aiortc cannot read: the task that reads would end with it, and the call.

    To be called once the remote description is set.
    """
    for transceiver in pc.getTransceivers():
        transport: Any = transceiver.receiver.transport
        transport._handle_rtcp_data = _dropping(transport._handle_rtcp_data)
    sctp: Any = pc.sctp
    if sctp is not None:
        handle = _dropping(sctp._handle_data)

        async def handle_sound(data: bytes) -> None:
            if is_sound(data, sctp._last_received_tsn):
                await handle(data)

        sctp._handle_data = handle_sound


def drop_unsent(pc: RTCPeerConnection) -> None:
    """Drop what SCTP would send when the connection has ended: it sends from tasks that nobody awaits.

    To be called once the remote description is set.
    """
    sctp: Any = pc.sctp
    if sctp is not None:
        sctp.transport._send_data = _dropping(sctp.transport._send_data, _UNSENT)


def _dropping(handle: _Handler, errors: tuple[type[Exception], ...] = _UNREADABLE) -> _Handler:
    async def handle_or_drop(data: bytes) -> None:
        try:
            await handle(data)
        except errors as error:
            logger.debug("%s dropped a message: %s: %s", handle.__name__, type(error).__name__, error)

    return handle_or_drop


def hold_connecting(pc: RTCPeerConnection) -> list[asyncio.Task[None]]:
    """Return a list that will hold the tasks in which a fresh `pc` connects, for `end_connecting`.

    aiortc keeps none of them. One that still runs when its connection is closed goes on: it asks for consent, sends and
    receives for ever.
    """
    private: Any = pc
    connect = private._RTCPeerConnection__connect
    tasks: list[asyncio.Task[None]] = []

    def begin() -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(connect(), name="connect")
        tasks.append(task)
        return task

    private._RTCPeerConnection__connect = begin
    return tasks


async def end_connecting(tasks: list[asyncio.Task[None]]) -> None:
    """End the tasks of `hold_connecting`. To be called before `pc.close()`."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def watch_goodbye(transceiver: RTCRtpTransceiver, on_goodbye: Callable[[], None]) -> None:
    """Call `on_goodbye` when the far end closes the connection (DTLS close_notify), not when it is lost."""
    dtls = transceiver.receiver.transport

    def look() -> None:
        # aioice closes its connection when consent (RFC 7675) is lost, and DTLS follows.
        if dtls.state == "closed" and not dtls.transport._connection._closing:
            on_goodbye()

    dtls.on("statechange", look)


async def restart_ice(
    pc: RTCPeerConnection, transceiver: RTCRtpTransceiver, offer_sdp: str, limit_s: float
) -> tuple[str, asyncio.Task[None]] | None:
    """Begin an ICE restart (RFC 8445 section 9), which aiortc ignores: sockets, DTLS and all above it stay.

    Args:
        pc: connected, all of it on the transport of `transceiver`.
        transceiver: the first of `pc`.
        offer_sdp: a further offer of the far end.
        limit_s: how long the new checks may take; then the path stays as it was.

    Returns:
        The answer, and the task that makes the checks, for `end_connecting`; sound keeps its path until they have
        found another. None: the offer is another connection's, or no restart.
    """
    private: Any = pc
    offer: Any = SessionDescription.parse(offer_sdp)
    known = private._RTCPeerConnection__remoteDescription()
    ice = offer.media[0].ice
    present: Connection = transceiver.receiver.transport.transport._connection
    theirs = {print_.value.upper() for print_ in private._RTCPeerConnection__remoteDtls[transceiver].fingerprints}
    same_end = all({print_.value.upper() for print_ in media.dtls.fingerprints} == theirs for media in offer.media)
    same_lines = [media.rtp.muxId for media in offer.media] == [media.rtp.muxId for media in known.media]
    if not same_end or not same_lines or ice.usernameFragment == present.remote_username:
        return None
    fresh = Connection(ice_controlling=present.ice_controlling)
    _take_checks_without_priority(fresh)
    fresh.remote_username, fresh.remote_password, fresh.remote_is_lite = ice.usernameFragment, ice.password, ice.iceLite
    fresh._protocols = present._protocols
    fresh._local_candidates = present._local_candidates
    fresh._local_candidates_start = fresh._local_candidates_end = True
    for media in offer.media:
        for candidate in media.ice_candidates:
            await fresh.add_remote_candidate(candidate_to_aioice(candidate))
    answer: str = pc.localDescription.sdp
    answer = re.sub(r"(?m)^a=ice-ufrag:\S*", f"a=ice-ufrag:{fresh.local_username}", answer)
    answer = re.sub(r"(?m)^a=ice-pwd:\S*", f"a=ice-pwd:{fresh.local_password}", answer)
    task = asyncio.get_running_loop().create_task(_change_path(present, fresh, limit_s), name="restart")
    return answer, task


async def _change_path(present: Connection, fresh: Connection, limit_s: float) -> None:
    for protocol in present._protocols:
        protocol.receiver = _Generations(present, fresh)  # type: ignore[assignment]
    try:
        # Not asyncio.timeout: see engines/workers/pool.py, `_end_all`.
        await asyncio.wait_for(fresh.connect(), limit_s)
    except (ConnectionError, TimeoutError):
        logger.info("an ICE restart found no path within %g s", limit_s)
    else:
        _adopt(present, fresh)
    finally:
        for protocol in present._protocols:
            protocol.receiver = present
        for task in (fresh._query_consent_task, *(pair.task for pair in fresh._check_list)):
            if task is not None:
                task.cancel()


def _adopt(present: Connection, fresh: Connection) -> None:
    """Let the connection go on with the path, the credentials and the role that the new checks have found."""
    if present._closing:
        return
    present._local_username, present._local_password = fresh.local_username, fresh.local_password
    present.remote_username, present.remote_password = fresh.remote_username, fresh.remote_password
    present.remote_is_lite, present.ice_controlling = fresh.remote_is_lite, fresh.ice_controlling
    present._tie_breaker = fresh._tie_breaker
    present._remote_candidates, present._check_list = fresh._remote_candidates, fresh._check_list
    _reopen_checks(present)
    present._nominated, present._nominating = fresh._nominated, fresh._nominating
    if present._query_consent_task is not None:
        present._query_consent_task.cancel()
    present._query_consent_task = asyncio.get_running_loop().create_task(present.query_consent(), name="consent")


class _Generations:
    """What a socket tells while a restart is under way: a check goes to the generation whose name it bears."""

    def __init__(self, present: Connection, fresh: Connection) -> None:
        self._present = present
        self._fresh = fresh
        self.data_received = present.data_received
        self.protocol_lost = present.protocol_lost

    def request_received(self, message: Message, address: tuple[str, int], protocol: StunProtocol) -> None:
        name = str(message.attributes.get("USERNAME", "")).partition(":")[0]
        connection = self._fresh if name == self._fresh.local_username else self._present
        connection.request_received(message, address, protocol)


def shape(
    pc: RTCPeerConnection, there_s: Callable[[float], float | None], back_s: Callable[[float], float | None]
) -> None:
    """Let a connected `pc` send and receive through a bad network from now on.

    Args:
        pc: connected.
        there_s: when a datagram that is sent now gets through; None: it is lost.
        back_s: the same for one that comes.
    """
    private: Any = pc
    for transport in private._RTCPeerConnection__iceTransports:
        for protocol in transport._connection._protocols:
            protocol.datagram_received = _through(protocol.datagram_received, back_s, protocol.transport)
            protocol.transport = _BadNetwork(protocol.transport, there_s)


class _BadNetwork:
    """A datagram transport that loses and delays."""

    def __init__(self, transport: asyncio.DatagramTransport, arrival_s: Callable[[float], float | None]) -> None:
        self._transport = transport
        self.sendto = _through(transport.sendto, arrival_s, transport)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _through(
    give: Callable[[bytes, Any], None],
    arrival_s: Callable[[float], float | None],
    transport: asyncio.DatagramTransport,
) -> Callable[[bytes, Any], None]:
    """Return what gives on a datagram when it arrives, unless it is lost, or `transport` is closed by then."""
    loop = asyncio.get_running_loop()

    def give_late(data: bytes, address: Any) -> None:
        if not transport.is_closing():
            give(data, address)

    def carry(data: bytes, address: Any = None) -> None:
        now_s = loop.time()
        at_s = arrival_s(now_s)
        if at_s is None:
            return
        if at_s <= now_s:
            give(data, address)
        else:
            loop.call_at(at_s, give_late, data, address)

    return carry


def close_sockets(pc: RTCPeerConnection) -> None:
    """Close what a failed `pc.close()` may have left open."""
    private: Any = pc
    for transport in private._RTCPeerConnection__iceTransports:
        for protocol in transport._connection._protocols:
            protocol.transport.close()


def take_apart(pc: RTCPeerConnection) -> None:
    """Let a closed connection go a second from now, when its last tasks have ended. Nothing of it can be used then.

    Its parts hold each other: without this only the garbage collector, which is seldom asked, finds their 0.3 MB.
    """
    parts: list[Any] = [pc, pc.sctp, *pc.getTransceivers()]
    for transceiver in pc.getTransceivers():
        dtls: Any = transceiver.receiver.transport
        ice = dtls.transport
        parts += [transceiver.sender, transceiver.receiver, dtls, ice, ice.iceGatherer, ice._connection]
        if dtls._ssl is not None:
            parts.append(dtls._ssl._verify_helper)
        if isinstance(transceiver.receiver, RtpReceiver):
            parts += transceiver.receiver.sockets

    def let_go() -> None:
        for part in parts:
            if part is not None:
                vars(part).clear()

    asyncio.get_running_loop().call_later(_LAST_TASKS_S, let_go)
