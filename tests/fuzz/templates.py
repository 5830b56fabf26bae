"""Well-formed packets of each kind. What differs from call to call stands in them as a word, and `fit` puts it in.

So the packet that a number stands for is the same in every run, and one that was kept fits every call to come. What is
computed over a packet (checksums, signatures) is put in last: parsers behind it are reached.
"""

import hmac
import json
import struct
from dataclasses import dataclass

import numpy as np
from aioice import stun
from aiortc.rtcsctptransport import (
    AbortChunk,
    Chunk,
    CookieAckChunk,
    CookieEchoChunk,
    DataChunk,
    ErrorChunk,
    ForwardTsnChunk,
    HeartbeatAckChunk,
    HeartbeatChunk,
    InitAckChunk,
    InitChunk,
    ReconfigChunk,
    SackChunk,
    ShutdownAckChunk,
    ShutdownChunk,
    ShutdownCompleteChunk,
    StreamAddOutgoingParam,
    StreamResetOutgoingParam,
    StreamResetResponseParam,
)
from aiortc.rtp import (
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSdesPacket,
    RtcpSenderInfo,
    RtcpSourceInfo,
    RtcpSrPacket,
    RtpPacket,
    pack_remb_fci,
)
from google_crc32c import value as crc32c

from media_server.audio.opus import OpusEncoder
from tests.transport.webrtc.test_offer import CHROMIUM, WITHOUT_CANDIDATES

OPUS_TYPE, EVENT_TYPE = 96, 110
_TAG, _TSN, _ACKED = b"tag!", b"tsn!", b"ack!"
_SOURCE, _OUR_SOURCE = b"src1", b"src2"
_USER = b"usr1:usr2"
_SIGNATURE, _FINGERPRINT = b"-message-integrity-!", b"fngr"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWords:
    """What stands in the packets of one call.

    Attributes:
        tag: the verification tag that our end of the SCTP association expects.
        next_tsn: of the DATA chunk that it waits for.
        acked_tsn: of the last that it sent.
        source, our_source: the SSRCs of caller and server.
        user, password: of ICE, for requests to us.
    """

    tag: int
    next_tsn: int
    acked_tsn: int
    source: int
    our_source: int
    user: str
    password: str


def fit(kind: str, data: bytes, words: CallWords) -> bytes:
    """Return a packet as it fits the call, with its checksums right."""
    for word, value in (
        (_TAG, words.tag),
        (_TSN, words.next_tsn),
        (_ACKED, words.acked_tsn),
        (_SOURCE, words.source),
        (_OUR_SOURCE, words.our_source),
    ):
        if word in data:
            data = data.replace(word, (value % (1 << 32)).to_bytes(4))
    if kind == "sctp" and len(data) >= 12:
        data = data[:8] + struct.pack("<L", crc32c(data[:8] + bytes(4) + data[12:])) + data[12:]
    if kind == "stun":
        data = _sign(data.replace(_USER, words.user.encode()), words.password.encode())
    return data


def _sign(data: bytes, password: bytes) -> bytes:
    """Sign a STUN message where its signature stands, and make its length and its fingerprint right."""
    at = data.find(_SIGNATURE)
    if at >= 24:
        signed = stun.set_body_length(data[: at - 4], at - 4 - stun.HEADER_LENGTH + stun.INTEGRITY_LENGTH)
        data = data.replace(_SIGNATURE, hmac.new(password, signed, "sha1").digest())
    at = data.find(_FINGERPRINT)
    if at >= 24:
        data = data[: at - 4] + data[at - 4 : at] + struct.pack("!L", stun.message_fingerprint(data[: at - 4]))
    return data


def _rtp() -> tuple[bytes, ...]:
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=5, expected_loss_percent=10)
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(480) / 24_000)).astype(np.int16)
    payloads = [encoder.encode(tone) for _ in range(6)]
    source = int.from_bytes(_SOURCE)
    packets = [
        RtpPacket(payload_type=OPUS_TYPE, sequence_number=100 + n, timestamp=960 * n, ssrc=source, payload=payload)
        for n, payload in enumerate(payloads)
    ]
    packets[1].csrc = [1, 2]
    packets[2].padding_size = 4
    packets += [
        RtpPacket(payload_type=EVENT_TYPE, sequence_number=110 + n, timestamp=9_600, ssrc=source, payload=payload)
        for n, payload in enumerate((b"\x05\x0a\x03\xc0", b"\x05\x8a\x07\x80"))
    ]
    extended = packets[0].serialize()
    extended = b"\x90" + extended[1:12] + b"\xbe\xde\x00\x01\x10\x30\x22\x85" + extended[12:]
    return (extended, *(packet.serialize() for packet in packets))


def _rtcp() -> tuple[bytes, ...]:
    source, ours = int.from_bytes(_SOURCE), int.from_bytes(_OUR_SOURCE)
    report = RtcpReceiverInfo(
        ssrc=ours, fraction_lost=12, packets_lost=3, highest_sequence=900, jitter=20, lsr=77, dlsr=400
    )
    sender = RtcpSenderInfo(ntp_timestamp=16_978_000_000_000_000_000, rtp_timestamp=960, packet_count=9, octet_count=90)
    sr = bytes(RtcpSrPacket(ssrc=source, sender_info=sender, reports=[report]))
    rr = bytes(RtcpRrPacket(ssrc=source, reports=[report, report]))
    sdes = bytes(RtcpSdesPacket(chunks=[RtcpSourceInfo(ssrc=source, items=[(1, b"caller@example"), (2, b"x")])]))
    bye = bytes(RtcpByePacket(sources=[source]))
    nack = bytes(RtcpRtpfbPacket(fmt=1, ssrc=source, media_ssrc=ours, lost=[1, 2, 9, 40]))
    pli = bytes(RtcpPsfbPacket(fmt=1, ssrc=source, media_ssrc=ours))
    remb = bytes(RtcpPsfbPacket(fmt=15, ssrc=source, media_ssrc=0, fci=pack_remb_fci(64_000, [ours, 7])))
    return (sr, rr, sr + sdes, rr + sdes, sr + sdes + bye, rr + nack, rr + pli, rr + remb, remb)


def _stun() -> tuple[bytes, ...]:
    requests = []
    for extra in ({"USE-CANDIDATE": None}, {"ICE-CONTROLLED": 7}, {"SOFTWARE": "caller"}, {}):
        message = stun.Message(
            stun.Method.BINDING,
            stun.Class.REQUEST,
            transaction_id=b"transaction1",
            attributes={"USERNAME": _USER.decode(), "PRIORITY": 1_862_270_975, "ICE-CONTROLLING": 99, **extra},
        )
        message.attributes["MESSAGE-INTEGRITY"] = _SIGNATURE
        message.attributes["FINGERPRINT"] = int.from_bytes(_FINGERPRINT)
        requests.append(bytes(message))
    indication = stun.Message(stun.Method.BINDING, stun.Class.INDICATION, transaction_id=b"transaction2")
    response = stun.Message(
        stun.Method.BINDING,
        stun.Class.RESPONSE,
        transaction_id=b"transaction3",
        attributes={"XOR-MAPPED-ADDRESS": ("192.0.2.7", 4_000)},
    )
    error = stun.Message(
        stun.Method.BINDING,
        stun.Class.ERROR,
        transaction_id=b"transaction4",
        attributes={"ERROR-CODE": (487, "Role Conflict"), "XOR-MAPPED-ADDRESS": ("2001:db8::1", 9)},
    )
    return (*requests, bytes(indication), bytes(response), bytes(error))


def _sctp() -> tuple[bytes, ...]:
    tsn, acked = int.from_bytes(_TSN), int.from_bytes(_ACKED)
    chunks: list[Chunk] = []
    for stream, protocol, payload in (
        (1, 51, json.dumps({"type": "input_audio_buffer.clear", "event_id": "e"}).encode()),
        (1, 53, b"binary"),
        (1, 56, b"\x00"),
        (3, 50, struct.pack("!BBHLHH", 3, 0, 0, 0, 10, 4) + b"oai-events" + b"text"),
        (3, 50, b"\x02"),
    ):
        data = DataChunk(flags=3)
        data.tsn, data.stream_id, data.protocol, data.user_data = tsn, stream, protocol, payload
        chunks.append(data)
    sack = SackChunk()
    sack.cumulative_tsn, sack.advertised_rwnd, sack.gaps, sack.duplicates = acked, 100_000, [(2, 3), (5, 5)], [tsn]
    chunks.append(sack)
    for init in (InitChunk(), InitAckChunk()):
        init.initiate_tag, init.advertised_rwnd, init.initial_tsn = 5, 100_000, tsn
        init.outbound_streams = init.inbound_streams = 65_535
        init.params = [(0xC000, b""), (0x8008, b"\xc0\x82"), (7, bytes(24))]
        chunks.append(init)
    forward = ForwardTsnChunk()
    forward.cumulative_tsn, forward.streams = tsn, [(1, 0), (3, 2)]
    shutdown = ShutdownChunk()
    shutdown.cumulative_tsn = acked
    chunks += [forward, shutdown, ShutdownAckChunk(), ShutdownCompleteChunk(), CookieAckChunk()]
    chunks.append(CookieEchoChunk(body=bytes(24)))
    for chunk, params in (
        (HeartbeatChunk(), [(1, b"heartbeat")]),
        (HeartbeatAckChunk(), [(1, b"heartbeat")]),
        (AbortChunk(), [(12, b"user")]),
        (ErrorChunk(), [(3, bytes(4))]),
        (ReconfigChunk(), [(13, bytes(StreamResetOutgoingParam(1, 2, acked, [3])))]),
        (ReconfigChunk(), [(16, bytes(StreamResetResponseParam(1, 1))), (17, bytes(StreamAddOutgoingParam(9, 2)))]),
    ):
        chunk.params = params
        chunks.append(chunk)
    alone = [_sctp_packet(bytes(chunk), 0 if isinstance(chunk, InitChunk) else None) for chunk in chunks]
    together = [_sctp_packet(bytes(one) + bytes(two), None) for one, two in ((chunks[0], sack), (sack, forward))]
    return (*alone, *together)


def _sctp_packet(chunks: bytes, tag: int | None) -> bytes:
    return struct.pack("!HH", 5000, 5000) + (_TAG if tag is None else tag.to_bytes(4)) + bytes(4) + chunks


def _dtls() -> tuple[bytes, ...]:
    """Return records (RFC 6347 section 4.1) of each content type, and of no epoch that is known."""
    bodies = {
        20: b"\x01",
        21: b"\x01\x00",
        22: b"\x01" + (50).to_bytes(3) + bytes(2) + bytes(3) + (50).to_bytes(3) + b"\xfe\xfd" + bytes(48),
        23: bytes(range(40)),
    }
    return tuple(
        struct.pack("!BHHHLH", kind, version, epoch, 0, 7, len(body)) + body
        for kind, body in bodies.items()
        for version in (0xFEFD, 0xFEFF)
        for epoch in (0, 1)
    )


_MESSAGES: tuple[dict[str, object], ...] = (
    {
        "type": "session.update",
        "event_id": "e1",
        "session": {
            "type": "realtime",
            "instructions": "Be brief.",
            "output_modalities": ["audio"],
            "max_output_tokens": 200,
            "tool_choice": "auto",
            "tools": [{"type": "function", "name": "brew", "parameters": {"type": "object", "properties": {}}}],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500},
                    "transcription": {"language": "en", "prompt": "coffee"},
                },
                "output": {"voice": "amy", "speed": 1.0},
            },
        },
    },
    {
        "type": "conversation.item.create",
        "previous_item_id": "root",
        "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    },
    {
        "type": "conversation.item.create",
        "item": {"type": "function_call_output", "call_id": "call_1", "output": "{}"},
    },
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 1200},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.delete", "item_id": "item_1", "event_id": "e2"},
    {
        "type": "response.create",
        "response": {"conversation": "none", "metadata": {"a": "b"}, "input": [], "instructions": "x"},
    },
    {"type": "response.cancel", "response_id": "resp_1"},
    {"type": "output_audio_buffer.clear"},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
)

RTP = _rtp()
SCTP = _sctp()
PACKETS: dict[str, tuple[bytes, ...]] = {
    "datagram": (*_stun(), *_dtls(), *RTP, *_rtcp(), b""),
    "stun": _stun(),
    "rtp": RTP,
    "srtp": RTP,
    "rtcp": _rtcp(),
    "sctp": SCTP,
}
"""By kind: see `tests/fuzz/victim.py` for where each goes."""

MESSAGES = tuple(json.dumps(message) for message in _MESSAGES)
OFFERS = (CHROMIUM, WITHOUT_CANDIDATES)
