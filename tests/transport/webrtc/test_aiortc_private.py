"""Fails when a new aiortc or aioice has changed a private part that the transport touches."""

import asyncio
import inspect
from typing import Any

import aioice.ice
import numpy as np
import pytest
from aioice.ice import StunProtocol
from aioice.stun import Class, Message, Method, Transaction
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpTransceiver, RTCSessionDescription, exceptions
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpParameters,
    RTCRtpReceiveParameters,
)
from aiortc.rtcrtpreceiver import RTCRtpReceiver, StreamStatistics
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtcsctptransport import SCTP_MAX_PACKET_LENGTH, RTCSctpTransport
from aiortc.rtp import HeaderExtensionsMap, RtpPacket
from OpenSSL import SSL

from media_server.audio.jitter import RtpSound
from media_server.transport.webrtc import aiortc_private
from media_server.transport.webrtc.aiortc_private import (
    addresses_for,
    choose_codec,
    choose_events,
    drop_unsent,
    gather_on,
    guard,
    read_rtp,
    take_over,
)
from tests.transport.webrtc.far_end import FarEnd
from tests.virtual_time import run_virtual

RECEIVER_PARTS = ["started", "codecs", "rtcp_task", "remote_streams", "lsr", "lsr_time", "rtcp_ssrc", "transport"]
CONNECTION_PARTS = [
    "_check_list",
    "_closing",
    "_early_checks",
    "_local_candidates",
    "_local_candidates_end",
    "_local_candidates_start",
    "_local_password",
    "_local_username",
    "_nominated",
    "_nominating",
    "_protocols",
    "_query_consent_task",
    "_remote_candidates",
    "_tie_breaker",
    "ice_controlling",
    "remote_is_lite",
    "remote_password",
    "remote_username",
]
DTLS_PARTS = [
    "_rtp_router",
    "_rx_srtp",
    "_tx_srtp",
    "_state",
    "_RTCDtlsTransport__tx_bytes",
    "_RTCDtlsTransport__tx_packets",
]
SENDER_PARTS = [
    "rtp_started",
    "rtp_exited",
    "rtp_header_extensions_map",
    "mid",
    "ntp_timestamp",
    "rtp_timestamp",
    "octet_count",
    "packet_count",
    "rtt",
    "transport",
]


async def test_the_private_parts_of_sender_and_receiver_are_there() -> None:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")

    receiver, sender = vars(transceiver.receiver), vars(transceiver.sender)
    missing = [name for name in RECEIVER_PARTS if f"_RTCRtpReceiver__{name}" not in receiver]
    missing += [name for name in SENDER_PARTS if f"_RTCRtpSender__{name}" not in sender]
    missing += [name for name in ("receiver", "sender") if f"_RTCRtpTransceiver__{name}" not in vars(transceiver)]
    missing += [name for name in ("_codecs", "_offerDirection") if name not in vars(transceiver)]
    missing += [name for name in ("_ssrc", "_stream_id", "_enabled") if name not in sender]
    missing += [name for name in ("_enabled", "_track") if name not in receiver]
    missing += [name for name in ("iceTransports", "remoteDtls") if f"_RTCPeerConnection__{name}" not in vars(pc)]
    missing += [name for name in DTLS_PARTS if name not in vars(transceiver.receiver.transport)]
    await pc.close()

    assert missing == []


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (RTCRtpReceiver.receive, ["self", "parameters"]),
        (StunProtocol.datagram_received, ["self", "data", "addr"]),
        (RTCDtlsTransport._handle_rtcp_data, ["self", "data"]),
        (RTCDtlsTransport._recv_next, ["self"]),
        (RTCDtlsTransport._register_rtp_receiver, ["self", "receiver", "parameters"]),
        (RTCPeerConnection._RTCPeerConnection__connect, ["self"]),  # type: ignore[attr-defined]
        (RTCPeerConnection._RTCPeerConnection__remoteDescription, ["self"]),  # type: ignore[attr-defined]
        (RTCRtpTransceiver._get_mline_index, ["self"]),
        (RTCRtpReceiver._handle_rtcp_packet, ["self", "packet"]),
        (RTCRtpReceiver._handle_rtp_packet, ["self", "packet", "arrival_time_ms"]),
        (RTCRtpReceiver._run_rtcp, ["self"]),
        (RTCRtpReceiver._set_rtcp_ssrc, ["self", "ssrc"]),
        (RTCRtpSender._handle_rtcp_packet, ["self", "packet"]),
        (RTCRtpSender._run_rtp, ["self", "codec"]),
        (RTCDtlsTransport._send_data, ["self", "data"]),
        (RTCSctpTransport._handle_data, ["self", "data"]),
        (StreamStatistics.__init__, ["self", "clockrate"]),
        (StreamStatistics.add, ["self", "packet"]),
        (RtpPacket.serialize, ["self", "extensions_map"]),
        (aioice.ice.get_host_addresses, ["use_ipv4", "use_ipv6"]),
        (aioice.ice.Connection.data_received, ["self", "data", "component"]),
        (aioice.ice.Connection.protocol_lost, ["self", "protocol"]),
        (aioice.ice.Connection.query_consent, ["self"]),
        (aioice.ice.Connection.build_request, ["self", "pair", "nominate"]),
        (
            Transaction.__init__,
            ["self", "request", "addr", "protocol", "retransmissions", "integrity_key", "long_term_credential"],
        ),
        (aioice.ice.Connection.request_received, ["self", "message", "addr", "protocol"]),
        (aioice.ice.Connection.get_component_candidates, ["self", "component", "addresses", "timeout"]),
    ],
)
def test_the_private_functions_take_what_they_took(function: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


async def test_what_an_offer_said_is_kept_where_we_look_for_it() -> None:
    far = FarEnd(codec="pcmu", keys_hz=[8_000])
    pc: Any = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")

    await pc.setRemoteDescription(RTCSessionDescription(sdp=await far.offer(), type="offer"))
    known = pc._RTCPeerConnection__remoteDescription().media
    index = transceiver._get_mline_index()
    prints = pc._RTCPeerConnection__remoteDtls[transceiver].fingerprints
    await pc.close()
    await far.pc.close()

    assert (index, [media.rtp.muxId for media in known]) == (0, ["0", "1"])
    assert {codec.name for codec in known[index].rtp.codecs} == {"PCMU", "telephone-event"}
    assert [print_.value for print_ in prints] == [print_.value for print_ in known[index].dtls.fingerprints]


async def test_data_and_reports_still_come_the_way_that_we_guard() -> None:
    far = FarEnd()
    pc: Any = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    source = inspect.getsource(RTCDtlsTransport._recv_next)

    await pc.setRemoteDescription(RTCSessionDescription(sdp=await far.offer(), type="offer"))
    dtls, sctp = transceiver.receiver.transport, pc.sctp
    guarded = {"_handle_data", "_handle_rtcp_data", "_send_data"}
    before = [vars(part).keys() & guarded for part in (dtls, sctp)]
    guard(pc)
    drop_unsent(pc)
    after = [vars(part).keys() & guarded for part in (dtls, sctp)]
    await sctp.transport._send_data(b"late")  # the connection is not there
    await pc.close()
    await far.pc.close()

    assert "await self._handle_rtcp_data(data)" in source
    assert "await self._data_receiver._handle_data(data)" in source
    assert "await self.__transport._send_data(" in inspect.getsource(RTCSctpTransport._send_chunk)
    assert (before, after) == ([set(), set()], [{"_handle_rtcp_data", "_send_data"}, {"_handle_data"}])
    assert sctp._last_received_tsn is None  # before there is an association


async def test_a_restart_finds_all_that_it_takes_over_from_the_new_checks() -> None:
    connection = aioice.ice.Connection(ice_controlling=False)
    protocol = StunProtocol(connection)

    assert [name for name in CONNECTION_PARTS if name not in vars(connection)] == []
    assert protocol.receiver is connection
    assert "self.receiver." in inspect.getsource(StunProtocol.datagram_received)
    assert "self._connection.recv" in inspect.getsource(RTCIceTransport.__init__)
    assert "self._early_checks.append((message, addr, protocol))" in inspect.getsource(connection.request_received)
    pair = aioice.ice.CandidatePair(protocol, aioice.Candidate.from_sdp("1 1 udp 1 127.0.0.9 5 typ host"))
    assert [name for name in ("protocol", "task") if name not in vars(pair)] == []


class SlowPath:
    """What a socket is to ICE, on a path whose answers take their time; None: there are none."""

    def __init__(self, rtt_s: float | None, key: str) -> None:
        self.local_candidate = HERE
        self.transactions: dict[bytes, Transaction] = {}
        self.sent_s: list[float] = []
        self._rtt_s = rtt_s
        self._key = key

    def send_stun(self, request: Message, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self.sent_s.append(loop.time())
        if self._rtt_s is not None:
            loop.call_later(self._rtt_s, self._answer, request, address)

    def _answer(self, request: Message, address: tuple[str, int]) -> None:
        answer = Message(Method.BINDING, Class.RESPONSE, transaction_id=request.transaction_id)
        answer.add_message_integrity(self._key.encode())
        if request.transaction_id in self.transactions:
            self.transactions[request.transaction_id].response_received(answer, address)


HERE, THERE = (aioice.Candidate.from_sdp(f"1 1 udp 1 127.0.0.{host} 5 typ host") for host in (8, 9))


def connected(path: Any) -> Any:
    """Return a connection that has found its path."""
    connection: Any = aioice.ice.Connection(ice_controlling=False)
    connection.remote_username, connection.remote_password = "name", "password"
    connection._nominated = {1: aioice.ice.CandidatePair(path, THERE)}
    aiortc_private._be_patient_for_consent(connection)
    return connection


@pytest.mark.parametrize("rtt_s", [0.05, 0.7, 3.0])
def test_consent_is_kept_however_long_an_answer_takes(rtt_s: float) -> None:
    async def main() -> tuple[list[float], bool]:
        path = SlowPath(rtt_s, "password")
        connection = connected(path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.query_consent(), 300)
        return path.sent_s, connection._closing

    sent_s, closing = run_virtual(main())

    assert not closing
    assert len(sent_s) == pytest.approx(60, abs=5)
    assert all(4 <= pause_s <= 6.1 for pause_s in np.diff(sent_s))


@pytest.mark.parametrize(("rtt_s", "key"), [(None, "password"), (0.05, "another's")])
def test_consent_ends_when_no_answer_came_for_thirty_seconds(rtt_s: float | None, key: str) -> None:
    async def main() -> tuple[float, bool]:
        connection = connected(SlowPath(rtt_s, key))
        await connection.query_consent()
        return asyncio.get_running_loop().time(), connection._closing

    lasted_s, closing = run_virtual(main())

    assert closing
    assert 30 <= lasted_s <= 36.1


async def test_a_path_whose_check_was_given_up_can_be_checked_again() -> None:
    async def check() -> None:
        await asyncio.get_running_loop().create_future()

    path = SlowPath(None, "password")
    connection = connected(path)
    given_up, under_way = (aioice.ice.CandidatePair(path, THERE) for _ in range(2))  # type: ignore[arg-type]
    connection._check_list = [given_up, under_way]
    for pair in connection._check_list:
        pair.state = aioice.ice.CandidatePair.State.IN_PROGRESS
        pair.task = asyncio.create_task(check())
    await asyncio.sleep(0)
    assert given_up.task is not None
    given_up.task.cancel()

    aiortc_private._reopen_checks(connection)

    tasks = [pair.task for pair in connection._check_list]
    assert given_up.state.name == "WAITING"
    assert tasks[0] is None
    assert under_way.state.name == "IN_PROGRESS"
    assert under_way.task is not None
    under_way.task.cancel()
    assert "check.task.cancel()" in inspect.getsource(aioice.ice.Connection.connect)
    assert "pair.state == CandidatePair.State.WAITING" in inspect.getsource(aioice.ice.Connection.check_incoming)


def test_a_connection_still_says_that_it_closes_before_dtls_hears_of_it() -> None:
    closing = inspect.getsource(aioice.ice.Connection.close)

    assert closing.index("self._closing = True") < closing.index("self._queue.put_nowait(None)")


def test_a_packet_of_sound_goes_out_as_aiortc_sends_one() -> None:
    assert "data = self._tx_srtp.protect(data)" in inspect.getsource(RTCDtlsTransport._send_rtp)
    assert "self.transport.sendto(data, addr)" in inspect.getsource(StunProtocol.send_data)
    assert isinstance(inspect.getattr_static(aioice.ice.CandidatePair, "remote_addr"), property)


def test_the_receiver_still_keeps_its_reports_where_we_feed_them() -> None:
    source = inspect.getsource(RTCRtpReceiver._run_rtcp)

    assert "self.__remote_streams.items()" in source


def test_a_connection_still_starts_its_connecting_tasks_where_we_hold_them() -> None:
    assert inspect.getsource(RTCPeerConnection).count("asyncio.ensure_future(self.__connect())") == 2


async def test_of_many_sources_the_oldest_is_forgotten_and_the_new_one_is_heard() -> None:
    heard: list[int] = []
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    receiver, _ = take_over(transceiver, lambda packet: heard.append(packet.ssrc), lambda _: None, lambda: None)
    parameters = RTCRtpReceiveParameters(
        codecs=[RTCRtpCodecParameters(mimeType="audio/PCMU", clockRate=8_000, payloadType=0)]
    )
    await receiver.receive(parameters)
    router = receiver.transport._rtp_router

    for ssrc in (1, 2, 3, 4, 5, 1):
        receiver._take(RtpPacket(payload_type=0, ssrc=ssrc, payload=b"x").serialize())
    known = set(router.ssrc_table)
    await pc.close()

    assert heard == [1, 2, 3, 4, 5, 1]
    assert known == {3, 4, 5, 1}


async def test_a_packet_that_is_no_rtp_is_counted_and_handed_to_nobody() -> None:
    heard: list[RtpSound] = []
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver, _ = take_over(pc.addTransceiver("audio"), heard.append, heard.append, lambda: None)

    receiver._take(b"\xa0" + bytes(10) + b"\xff")
    await pc.close()

    assert receiver.malformed == 1
    assert heard == []


def test_rtp_is_still_decrypted_as_we_decrypt_it() -> None:
    source = inspect.getsource(RTCDtlsTransport._recv_next)

    assert "first_byte > 127 and first_byte < 192 and self._rx_srtp" in source
    assert "data = self._rx_srtp.unprotect(data)" in source


@pytest.mark.parametrize(
    ("packet", "payload"),
    [
        (RtpPacket(payload_type=96, sequence_number=7, timestamp=960, ssrc=5, payload=b"abc"), b"abc"),
        (RtpPacket(payload_type=96, sequence_number=7, timestamp=960, ssrc=5, marker=1), b""),
    ],
)
def test_a_packet_is_read_as_aiortc_writes_it(packet: RtpPacket, payload: bytes) -> None:
    packet.csrc = [1, 2]
    packet.extensions.mid = "0"
    packet.padding_size = 4
    extensions = HeaderExtensionsMap()
    extensions.configure(
        RTCRtpParameters(
            headerExtensions=[RTCRtpHeaderExtensionParameters(id=1, uri="urn:ietf:params:rtp-hdrext:sdes:mid")]
        )
    )

    read = read_rtp(packet.serialize(extensions))

    assert read == (96, RtpSound(5, 7, 960, payload))


@pytest.mark.parametrize(
    "data",
    [
        b"\x90" + bytes(11),  # an extension that is not there
        b"\x90" + bytes(13) + b"\xff\xff",  # an extension that is longer than the packet
        b"\xa0" + bytes(10) + b"\xff",  # more padding than packet
        b"\x8f" + bytes(11),  # fifteen sources that are not there
        b"\x40" + bytes(20),  # another version
    ],
)
def test_a_packet_that_says_more_than_it_holds_is_malformed(data: bytes) -> None:
    assert read_rtp(data) is None


def test_what_asks_for_a_certificate_stands_where_it_is_taken_apart() -> None:
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)

    helper = SSL.Connection(context)._verify_helper

    assert helper is not None
    assert list(vars(helper)) == ["_problems", "callback"]
    assert helper.callback is context._verify_callback  # is there as long as the context is


def test_sctp_packets_fit_the_smallest_ipv6_path() -> None:
    assert SCTP_MAX_PACKET_LENGTH <= 1_200  # 1,280 less IPv6, UDP and DTLS


async def test_our_parts_are_used_by_the_connection_and_the_candidates_are_ours() -> None:
    far = FarEnd()
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    receiver, sender = take_over(transceiver, lambda _: None, lambda _: None, lambda: None)

    await pc.setRemoteDescription(RTCSessionDescription(sdp=await far.offer(), type="offer"))
    name = choose_codec(transceiver, {"pcmu": {}, "opus": {"useinbandfec": 1}})
    n_candidates = await gather_on(transceiver, ["127.0.0.1"])
    await pc.setLocalDescription(await pc.createAnswer())
    lines = pc.localDescription.sdp.splitlines()
    await pc.close()
    await far.pc.close()

    assert pc.getReceivers() == [receiver]
    assert pc.getSenders() == [sender]
    assert name == "pcmu"
    assert n_candidates == 1
    assert [line.split()[2:] for line in lines if line.startswith("m=audio")] == [["UDP/TLS/RTP/SAVPF", "0"]]
    assert {line.split()[4] for line in lines if line.startswith("a=candidate")} == {"127.0.0.1"}
    assert any(line.startswith("a=msid:") for line in lines)


@pytest.mark.parametrize(
    ("codec", "clocks_hz", "chosen_hz", "lines"),
    [
        ("opus", [48_000, 8_000], 48_000, ["a=rtpmap:110 telephone-event/48000", "a=fmtp:110 0-15"]),
        ("pcmu", [48_000, 8_000], 8_000, ["a=rtpmap:111 telephone-event/8000", "a=fmtp:111 0-15"]),
        ("opus", [8_000], 8_000, ["a=rtpmap:110 telephone-event/8000", "a=fmtp:110 0-15"]),
        ("pcmu", [48_000], None, []),
        ("opus", [], None, []),
    ],
)
async def test_keys_are_agreed_on_at_the_clock_of_the_codec_or_else_8_khz(
    codec: str, clocks_hz: list[int], chosen_hz: int | None, lines: list[str]
) -> None:
    far = FarEnd(codec=codec, keys_hz=clocks_hz)
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    await pc.setRemoteDescription(RTCSessionDescription(sdp=await far.offer(), type="offer"))

    choose_codec(transceiver, {codec: {}})
    agreed_hz = choose_events(pc, transceiver)
    answer = (await pc.createAnswer()).sdp.splitlines()
    await pc.close()
    await far.pc.close()

    assert agreed_hz == chosen_hz
    assert [line for line in answer if "telephone-event" in line or line.endswith(" 0-15")] == lines


async def test_an_offer_with_no_codec_that_is_wanted_is_refused() -> None:
    far = FarEnd(codec="g722")
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    await pc.setRemoteDescription(RTCSessionDescription(sdp=await far.offer(), type="offer"))

    with pytest.raises(LookupError, match="codecs g722, wanted one of opus, pcmu"):
        choose_codec(transceiver, {"opus": {}, "pcmu": {}})
    await pc.close()
    await far.pc.close()


async def test_no_candidate_is_gathered_behind_our_back() -> None:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    await gather_on(transceiver, ["127.0.0.1"])

    await pc.setLocalDescription(await pc.createOffer())
    candidates = [line for line in pc.localDescription.sdp.splitlines() if line.startswith("a=candidate")]
    await pc.close()

    assert len(candidates) == 1


async def test_what_is_announced_is_told_and_what_is_bound_is_checked() -> None:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")

    n_candidates = await gather_on(transceiver, ["127.0.0.1"], announce=["192.0.2.7", "192.0.2.8"])
    told = transceiver.receiver.transport.transport.iceGatherer.getLocalCandidates()
    (protocol,) = transceiver.receiver.transport.transport._connection._protocols
    await pc.close()

    assert n_candidates == 2
    assert [(each.ip, each.port) for each in told] == [
        ("192.0.2.7", protocol.local_candidate.port),
        ("192.0.2.8", protocol.local_candidate.port),
    ]
    assert protocol.local_candidate.host == "127.0.0.1"


async def test_our_candidates_are_made_as_aioice_makes_its_own() -> None:
    connection = aioice.ice.Connection(ice_controlling=False)
    theirs = await connection.get_component_candidates(component=1, addresses=["127.0.0.1"])
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    await gather_on(transceiver, ["127.0.0.1"])
    (ours,) = transceiver.receiver.transport.transport._connection.local_candidates
    await connection.close()
    await pc.close()

    assert vars(ours) | {"port": 0} == vars(theirs[0]) | {"port": 0}


def test_media_binds_where_http_binds() -> None:
    assert addresses_for("127.0.0.1") == ["127.0.0.1"]
    assert addresses_for("::1") == ["::1"]
    assert addresses_for("localhost") == ["127.0.0.1"]
    assert addresses_for("192.0.2.7") == ["192.0.2.7"]
    assert addresses_for("0.0.0.0") == addresses_for("::") != []


def test_every_error_of_aiortc_is_one_that_we_expect() -> None:
    own = [error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)]

    assert [error for error in own if not issubclass(error, aiortc_private.AIORTC_ERRORS)] == []


async def test_until_a_connection_stands_only_those_who_have_been_checked_reach_more_than_ice() -> None:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = pc.addTransceiver("audio")
    await gather_on(transceiver, ["127.0.0.1"])
    connection = transceiver.receiver.transport.transport._connection
    (socket,) = connection._protocols
    record = bytes([22, 254, 253]) + bytes(10)

    socket.datagram_received(record, ("127.0.0.9", 5))
    assert connection._queue.empty()

    await connection.add_remote_candidate(aioice.Candidate.from_sdp("1 1 udp 1 127.0.0.9 5 typ host"))
    connection._check_list.clear()  # aioice does so with pairs that it need not check any more
    socket.datagram_received(record, ("127.0.0.9", 5))
    assert connection._queue.get_nowait() == (record, 1)
    await pc.close()
