"""What is heard is kept in order, with the time at which it came."""

import numpy as np

from media_server.audio.chunk import Pcm
from media_server.caller.ear import Ear


def decode(payload: bytes) -> Pcm:
    """Return 20 ms at the level that the payload's only byte says, in hundreds."""
    return np.full(320, payload[0] * 100, dtype=np.int16)


def test_packets_follow_each_other_without_a_seam() -> None:
    ear = Ear(decode)

    ear.hear(b"\x01", sequence=65535, timestamp=2**32 - 960, at_s=1.0)
    ear.hear(b"\x02", sequence=0, timestamp=0, at_s=1.02)

    assert ear.pcm.tolist() == [100] * 320 + [200] * 320


def test_a_missing_packet_leaves_silence_in_its_place() -> None:
    ear = Ear(decode)

    ear.hear(b"\x01", sequence=7, timestamp=960, at_s=1.0)
    ear.hear(b"\x02", sequence=9, timestamp=2880, at_s=1.04)

    assert ear.pcm.tolist() == [100] * 320 + [0] * 320 + [200] * 320


def test_late_and_repeated_packets_are_dropped() -> None:
    ear = Ear(decode)

    for sequence in (7, 9, 8, 9):
        ear.hear(b"\x01", sequence=sequence, timestamp=960 * sequence, at_s=1.0)

    assert len(ear.frames) == 2


def test_a_clock_that_began_anew_leaves_no_hole() -> None:
    ear = Ear(decode)

    ear.hear(b"\x01", sequence=1, timestamp=0, at_s=1.0)
    ear.hear(b"\x01", sequence=2, timestamp=2**31, at_s=1.02)

    assert len(ear.pcm) == 640


def test_another_connection_begins_with_numbers_of_its_own() -> None:
    ear = Ear(decode)

    ear.hear(b"\x01", sequence=100, timestamp=0, at_s=1.0)
    ear.begin_stream()
    ear.hear(b"\x02", sequence=99, timestamp=5_000_000, at_s=9.0)

    assert ear.pcm.tolist() == [100] * 320 + [200] * 320


def test_an_empty_packet_is_no_sound() -> None:
    ear = Ear(decode)

    ear.hear(b"", sequence=1, timestamp=0, at_s=1.0)

    assert ear.first_packet_s is None
    assert len(ear.pcm) == 0


def test_the_first_and_the_last_sound_are_found_between_the_silence() -> None:
    ear = Ear(decode)
    for i, level in enumerate([0, 0, 20, 0, 30, 0]):
        ear.hear(bytes([level]), sequence=i, timestamp=960 * i, at_s=10 + i / 50)

    assert ear.first_packet_s == 10
    assert ear.first_sound_s() == 10.04
    assert ear.first_sound_s(10.05) == 10.08
    assert ear.first_sound_s(10.09) is None
    assert ear.last_sound_s() == 10.08
    assert ear.last_sound_s(10.05) == 10.04
    assert ear.last_sound_s(10.03) is None
