import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_server.audio.dtmf import DigitReader, SoundNumbers
from media_server.audio.jitter import RtpSound
from media_server.events import DigitPressed


def packet(code: int, began: int, ticks: int, *, end: bool = False, ssrc: int = 1) -> RtpSound:
    return RtpSound(ssrc, 0, began % 2**32, bytes([code, 0x80 * end | 10]) + ticks.to_bytes(2))


def press(code: int, began: int) -> list[RtpSound]:
    """Return the packets of a press of 100 ms at 8 kHz, the last of them three times."""
    return [packet(code, began, n * 160) for n in range(1, 5)] + [packet(code, began, 800, end=True)] * 3


def told(packets: list[RtpSound], clock_hz: int = 8_000) -> list[DigitPressed]:
    reader = DigitReader(clock_hz)
    return [pressed for n, each in enumerate(packets) for pressed in reader.put(each, n * 0.02)]


@pytest.mark.parametrize(("code", "digit"), [(0, "0"), (9, "9"), (10, "*"), (11, "#"), (12, "A"), (15, "D")])
def test_a_press_is_told_once_with_its_duration(code: int, digit: str) -> None:
    assert told(press(code, 4_000)) == [DigitPressed(digit, 100)]


def test_a_press_is_told_at_its_end_and_not_before() -> None:
    assert told(press(5, 4_000)[:4]) == []


def test_a_duration_is_in_ticks_of_the_agreed_clock() -> None:
    assert told([packet(5, 4_000, 4_800, end=True)], clock_hz=48_000) == [DigitPressed("5", 100)]


def test_the_same_key_twice_is_two_presses() -> None:
    assert told(press(5, 4_000) + press(5, 5_600)) == [DigitPressed("5", 100)] * 2


def test_a_press_whose_timestamp_wraps_is_after_the_one_before_it() -> None:
    assert told(press(1, 2**32 - 1_600) + press(2, 2**32)) == [DigitPressed("1", 100), DigitPressed("2", 100)]


def test_a_press_whose_end_was_lost_is_told_when_the_next_begins() -> None:
    assert told(press(1, 4_000)[:4] + press(2, 6_000)) == [DigitPressed("1", 80), DigitPressed("2", 100)]


def test_a_press_whose_end_was_lost_is_told_after_200_ms_without_a_packet() -> None:
    reader = DigitReader(8_000)
    reader.put(packet(1, 4_000, 160), 1.0)

    assert reader.advance(1.19) == []
    assert reader.advance(1.21) == [DigitPressed("1", 20)]
    assert reader.advance(1.23) == []
    assert reader.put(packet(1, 4_000, 320, end=True), 1.3) == []


def test_a_packet_that_the_next_press_has_overtaken_is_not_a_press() -> None:
    packets = [packet(1, 4_000, 640), packet(2, 5_600, 160), packet(1, 4_000, 960, end=True), *press(2, 5_600)]

    assert told(packets) == [DigitPressed("1", 80), DigitPressed("2", 100)]


def test_after_the_clock_of_the_caller_was_set_back_presses_are_heard() -> None:
    assert told(press(1, 400_000) + press(2, 4_000)) == [DigitPressed("1", 100), DigitPressed("2", 100)]


def test_another_source_with_the_same_timestamp_is_another_press() -> None:
    packets = [packet(1, 4_000, 800, end=True), packet(1, 4_000, 800, end=True, ssrc=2)]

    assert told(packets) == [DigitPressed("1", 100)] * 2


def test_a_press_too_long_for_its_field_goes_on_under_a_new_timestamp() -> None:
    # RFC 4733 section 2.5.1.3; at 48 kHz the field holds 1,365 ms.
    packets = [packet(7, 0, 64_000), packet(7, 0, 65_535), packet(7, 65_535, 960), packet(7, 65_535, 30_465, end=True)]

    assert told(packets, clock_hz=48_000) == [DigitPressed("7", 2_000)]


def test_a_flash_of_the_hook_is_no_digit() -> None:
    assert told([packet(16, 4_000, 800, end=True)]) == []


@pytest.mark.parametrize("payload", [b"", b"\x01\x80\x00"])
def test_a_payload_that_is_too_short_is_counted(payload: bytes) -> None:
    reader = DigitReader(8_000)

    assert reader.put(RtpSound(1, 0, 0, payload), 0.0) == []
    assert reader.malformed == 1


def numbers(order: list[tuple[int, str]]) -> list[int]:
    """Return the numbers that sound gets, of packets of sound ("s") and of keys ("k")."""
    counted = SoundNumbers()
    given_out = []
    for seq, kind in order:
        one = RtpSound(1, seq % 2**16, 0, b"x")
        if kind == "k":
            counted.leave_out(one)
        else:
            given_out.append(counted.renumber(one).sequence_number)
    return given_out


def test_sound_is_numbered_without_gaps_where_keys_were_sent() -> None:
    assert numbers([(5, "s"), (6, "k"), (7, "k"), (7, "k"), (8, "s"), (9, "s"), (10, "k"), (11, "s")]) == [5, 6, 7, 8]


def test_a_lost_packet_of_sound_is_still_missing() -> None:
    assert numbers([(5, "s"), (6, "k"), (8, "s")]) == [5, 7]


def test_sound_from_before_the_keys_that_comes_after_them_has_its_old_place() -> None:
    assert numbers([(4, "s"), (6, "k"), (7, "k"), (5, "s"), (8, "s")]) == [4, 5, 6]


def test_keys_that_sound_has_overtaken_take_no_place_from_other_sound() -> None:
    assert numbers([(5, "s"), (7, "s"), (6, "k"), (8, "s")]) == [5, 7, 8]


def test_numbers_wrap() -> None:
    assert numbers([(65_534, "s"), (65_535, "k"), (65_536, "k"), (65_537, "s"), (65_538, "s")]) == [65_534, 65_535, 0]


def test_a_press_of_long_ago_is_still_left_out_of_the_count() -> None:
    order = [(0, "s"), (1, "k"), *((n, "s") for n in range(2, 100_000))]

    assert numbers(order)[-1] == 99_998 % 2**16


@given(st.lists(st.sampled_from("sk"), min_size=1, max_size=300))
def test_whatever_is_sent_between_it_sound_in_order_is_numbered_in_order(kinds: list[str]) -> None:
    given_out = numbers([(7, "s"), *((n, kind) for n, kind in enumerate(kinds, start=8))])

    assert given_out == list(range(7, 8 + kinds.count("s")))
