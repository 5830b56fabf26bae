"""The gate before aiortc's SCTP: a packet is looked through before it is read.

What comes through DTLS comes from the caller, who may be anybody. aiortc 1.16 believes what a packet says of itself:
a parameter of length 0 holds the loop for ever, a few acknowledged blocks for a second, and numbers from far away are
kept and sorted again with each packet.
"""

import struct

from media_server.audio.wrapping import signed

MAX_TSN_AHEAD = 4_096
"""Chunks that may come out of order. A sender has at most 1 MB under way, which is about 900 full ones."""

MAX_ACKED = 65_536
"""TSNs that one SACK may tell of one by one: more are not on their way."""

_TSNS = 1 << 32  # RFC 9260 section 1.6: they start over
_HEADER_BYTES = 12  # RFC 9260 section 3.1
_DATA, _INIT, _INIT_ACK, _SACK, _SHUTDOWN, _FORWARD_TSN = 0, 1, 2, 3, 7, 192
_PARAMETERS_FROM = {1: 16, 2: 16, 4: 0, 5: 0, 6: 0, 9: 0, 130: 0}
"""Where in a chunk's body its parameters or causes begin, by type: RFC 9260 section 3.3, RFC 6525 section 3.1."""

_RECONFIG = 130
_RECONFIG_BYTES = {13: 12, 16: 8, 17: 8}  # RFC 6525 sections 4.1, 4.4, 4.5: what each parameter holds at least
_LEAST_BYTES = {_DATA: 12, _INIT: 16, _INIT_ACK: 16, _SACK: 12, _SHUTDOWN: 4, _FORWARD_TSN: 4}


def is_sound(packet: bytes, last_tsn: int | None) -> bool:
    """Return whether aiortc can read an SCTP packet, and in no more time than its length is worth.

    Args:
        packet: decrypted.
        last_tsn: the last one received of those without a gap; None: there is no association yet.
    """
    at = _HEADER_BYTES
    kinds = []
    while at + 4 <= len(packet):
        kind, _, length = struct.unpack_from("!BBH", packet, at)
        body = packet[at + 4 : at + length]
        if length < 4 or at + length > len(packet) or not _is_sound_chunk(kind, body, last_tsn):
            return False
        kinds.append(kind)
        at += length + -length % 4
    return len(kinds) == 1 or not {_INIT, _INIT_ACK} & set(kinds)


def _is_sound_chunk(kind: int, body: bytes, last_tsn: int | None) -> bool:
    if len(body) < _LEAST_BYTES.get(kind, 0):
        return False
    if kind == _DATA:
        return last_tsn is not None and signed(int.from_bytes(body[:4]) - last_tsn, _TSNS) <= MAX_TSN_AHEAD
    if kind == _SACK:
        return _is_sound_sack(body)
    if kind == _FORWARD_TSN:
        return last_tsn is not None and len(body) % 4 == 0
    begin = _PARAMETERS_FROM.get(kind)
    return begin is None or _are_sound_parameters(kind, body, begin)


def _is_sound_sack(body: bytes) -> bool:
    n_gaps, n_twice = struct.unpack_from("!HH", body, 8)
    if len(body) < 12 + 4 * (n_gaps + n_twice):
        return False
    gaps = struct.unpack_from(f"!{2 * n_gaps}H", body, 12)
    sizes = [end - begin + 1 for begin, end in zip(gaps[::2], gaps[1::2], strict=True)]
    return all(size > 0 for size in sizes) and sum(sizes) <= MAX_ACKED


def _are_sound_parameters(kind: int, body: bytes, at: int) -> bool:
    while at + 4 <= len(body):
        parameter, length = struct.unpack_from("!HH", body, at)
        least = 4 + (_RECONFIG_BYTES.get(parameter, 0) if kind == _RECONFIG else 0)
        odd = kind == _RECONFIG and length % 2
        if length < least or at + length > len(body) or odd:
            return False
        at += length + -length % 4
    return True
