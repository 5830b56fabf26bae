"""What aiortc's SCTP is given to read, and what not."""

import struct

import pytest

from media_server.transport.webrtc.sctp_gate import MAX_TSN_AHEAD, is_sound

DATA, INIT, SACK, HEARTBEAT, SHUTDOWN, RECONFIG, FORWARD_TSN = 0, 1, 3, 4, 7, 130, 192
LAST_TSN = (1 << 32) - 2


def packet(*chunks: bytes) -> bytes:
    return bytes(12) + b"".join(chunks)


def chunk(kind: int, body: bytes, length: int | None = None) -> bytes:
    n_bytes = 4 + len(body) if length is None else length
    return struct.pack("!BBH", kind, 0, n_bytes) + body + bytes(-len(body) % 4)


def data(tsn: int) -> bytes:
    return chunk(DATA, struct.pack("!LHHL", tsn % (1 << 32), 1, 0, 51) + b"hello")


def sack(*gaps: tuple[int, int], told: int | None = None) -> bytes:
    n_gaps = len(gaps) if told is None else told
    return chunk(SACK, struct.pack("!LLHH", 1, 1000, n_gaps, 0) + b"".join(struct.pack("!HH", *gap) for gap in gaps))


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(packet(data(LAST_TSN + 1)), id="the next chunk of data"),
        pytest.param(packet(data(LAST_TSN + MAX_TSN_AHEAD)), id="one that overtook many, past the wrap"),
        pytest.param(packet(data(LAST_TSN - 5)), id="one that came before"),
        pytest.param(packet(sack(), data(LAST_TSN + 1)), id="two chunks"),
        pytest.param(packet(sack((2, 3), (5, 9))), id="acknowledged blocks"),
        pytest.param(packet(chunk(HEARTBEAT, struct.pack("!HH", 1, 8) + bytes(4))), id="a heartbeat"),
        pytest.param(packet(chunk(INIT, bytes(16))), id="the first packet"),
        pytest.param(packet(chunk(RECONFIG, struct.pack("!HHLLLH", 13, 18, 1, 1, 1, 1))), id="a stream is reset"),
    ],
)
def test_what_stacks_send_passes(sound: bytes) -> None:
    assert is_sound(sound, LAST_TSN)


@pytest.mark.parametrize(
    "unsound",
    [
        pytest.param(
            packet(chunk(HEARTBEAT, struct.pack("!HH", 1, 0))), id="a parameter of length 0 would be read for ever"
        ),
        pytest.param(packet(chunk(HEARTBEAT, struct.pack("!HH", 1, 9))), id="a parameter longer than its chunk"),
        pytest.param(packet(chunk(DATA, bytes(4))), id="data without its header"),
        pytest.param(packet(data(LAST_TSN + MAX_TSN_AHEAD + 1)), id="data from far away"),
        pytest.param(packet(chunk(SHUTDOWN, b"")), id="a shutdown without a number"),
        pytest.param(packet(chunk(DATA, bytes(16), length=400)), id="a chunk longer than its packet"),
        pytest.param(packet(chunk(DATA, bytes(16), length=3)), id="a chunk shorter than its header"),
        pytest.param(packet(sack((9, 5))), id="a block that ends before it begins"),
        pytest.param(packet(sack((1, 2), told=2)), id="fewer blocks than told"),
        pytest.param(packet(sack((0, 65_535), (0, 65_535))), id="blocks that take a second to look at"),
        pytest.param(packet(chunk(INIT, bytes(16)), data(LAST_TSN + 1)), id="a beginning among others"),
        pytest.param(packet(chunk(RECONFIG, struct.pack("!HHL", 13, 8, 1))), id="a reset without its numbers"),
        pytest.param(packet(chunk(FORWARD_TSN, bytes(6))), id="half a skipped stream"),
    ],
)
def test_what_aiortc_cannot_read_does_not(unsound: bytes) -> None:
    assert not is_sound(unsound, LAST_TSN)


def test_before_there_is_an_association_no_data_passes() -> None:
    assert not is_sound(packet(data(1)), None)
    assert is_sound(packet(chunk(INIT, bytes(16))), None)
