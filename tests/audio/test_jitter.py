"""Packets here hold their own number as payload; `x` at the front makes one malformed."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_server.audio.jitter import Concealed, JitterBuffer, Played, RtpSound, Silent, Step

FRAME = 960
MALFORMED = b"x"


def buffer() -> JitterBuffer:
    return JitterBuffer(
        clock_hz=48_000, wait_limit_ms=200, ticks_of=lambda payload: 0 if payload == MALFORMED else FRAME
    )


def packet(n: int, *, ssrc: int = 1, base_seq: int = 0, base_ts: int = 0, payload: bytes | None = None) -> RtpSound:
    return RtpSound(
        ssrc,
        (base_seq + n) % 65_536,
        (base_ts + n * FRAME) % (1 << 32),
        str(n).encode() if payload is None else payload,
    )


def short(steps: Iterable[Step]) -> list[str]:
    """`5`: packet 5 is played; `_40`: 40 ms of silence.

    `~20>6`: 20 ms are concealed with the help of packet 6; `~20.`: no more may be guessed.
    """
    words = []
    for step in steps:
        match step:
            case Played():
                words.append(step.payload.decode())
            case Concealed():
                following = f">{step.following.decode()}" if step.following else ""
                words.append(f"~{step.n_ticks // 48}{following}{'.' * step.last}")
            case Silent():
                words.append(f"_{step.n_ticks // 48}")
    return words


def total_ticks(steps: Iterable[Step]) -> int:
    return sum(step.n_ticks for step in steps)


def test_packets_in_order_go_through_at_once() -> None:
    jitter = buffer()

    played = [short(jitter.put(packet(n), n * 0.02)) for n in range(4)]

    assert played == [["0"], ["1"], ["2"], ["3"]]


def test_two_swapped_packets_are_put_in_order() -> None:
    jitter = buffer()

    played = [short(jitter.put(packet(n), at * 0.02)) for at, n in enumerate([0, 2, 1, 3])]

    assert played == [["0"], [], ["1", "2"], ["3"]]
    assert jitter.counts.lost == 0


def test_on_a_clean_path_a_gap_is_concealed_when_the_next_but_one_is_here() -> None:
    jitter = buffer()

    played = [short(jitter.put(packet(n), n * 0.02)) for n in [0, 2, 3, 4]]

    assert played == [["0"], [], ["~20>2", "2", "3"], ["4"]]
    assert jitter.counts.lost == 1
    assert jitter.counts.concealed_ms == 20


def test_a_gap_is_concealed_when_it_was_waited_for_long_enough() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    jitter.put(packet(2), 0.04)

    assert short(jitter.advance(0.054)) == []
    assert short(jitter.advance(0.056)) == ["~20>2", "2"]


def test_where_packets_overtake_each_other_a_gap_is_waited_for_longer() -> None:
    jitter = buffer()
    arrivals = [(n * 0.02 + (0.055 if n % 5 == 0 else 0.0), n) for n in range(1, 100)]

    played = [short(jitter.put(packet(n), at_s)) for at_s, n in sorted(arrivals)]

    assert 35 <= jitter.gap_wait_ms <= 45  # overtaken by two: the first came 35 ms before
    assert jitter.counts.late <= 2
    assert [word for words in played[60:] for word in words if word.startswith("~")] == []


def test_a_missing_packet_is_never_waited_for_longer_than_the_limit() -> None:
    jitter = buffer()

    for n in range(200):
        jitter.put(packet(n), n * 0.02 + (0.4 if n % 3 == 0 else 0.0))

    assert jitter.gap_wait_ms <= 200
    assert jitter.idle_ms <= 240


def test_a_packet_that_comes_after_its_place_was_concealed_is_dropped() -> None:
    jitter = buffer()
    for n in [0, 2, 3]:
        jitter.put(packet(n), n * 0.02)

    assert short(jitter.put(packet(1), 0.07)) == []
    assert jitter.counts.late == 1


def test_a_packet_that_comes_twice_is_played_once() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    jitter.put(packet(2), 0.04)

    assert short(jitter.put(packet(2), 0.05)) == []
    assert short(jitter.put(packet(1), 0.05)) == ["1", "2"]
    assert jitter.counts.duplicate == 1


def test_a_long_gap_is_guessed_for_100_ms_then_silent_then_recovered() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    steps = [step for n in [11, 12, 13] for step in jitter.put(packet(n), 0.05 + n * 0.001)]
    steps += jitter.advance(0.08)

    assert short(steps) == ["~100.", "_80", "~20>11", "11", "12", "13"]


def test_a_pause_of_the_sender_is_silence_not_a_guess() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    steps = jitter.put(RtpSound(1, 1, 4 * FRAME, b"1"), 0.05)

    assert short(steps) == ["_60", "1"]
    assert jitter.counts.lost == 0


def test_sequence_numbers_and_timestamps_wrap() -> None:
    jitter = buffer()

    steps = [
        step
        for n in [0, 1, 3, 2, 4]
        for step in jitter.put(packet(n, base_seq=65_534, base_ts=(1 << 32) - 2 * FRAME), n * 0.02)
    ]

    assert short(steps) == ["0", "1", "2", "3", "4"]
    assert jitter.counts.restarts == 0


def test_the_clock_goes_on_when_nothing_comes() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    fills = [short(jitter.advance(beat * 0.02 + 0.001)) for beat in range(1, 8)]

    assert fills == [[], [], ["~20"], ["~20"], ["~20"], ["~20"], ["~20."]]
    assert short(jitter.advance(0.161)) == ["_20"]


def test_a_late_beat_guesses_what_may_still_be_guessed_and_the_rest_is_silence() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    for beat in range(1, 7):
        jitter.advance(beat * 0.02 + 0.001)

    assert short(jitter.advance(0.161)) == ["~20.", "_20"]
    assert jitter.counts.concealed_ms == 100
    assert jitter.counts.filled_ms == 20


def test_where_packets_come_unevenly_the_clock_waits_longer() -> None:
    jitter = buffer()
    rng = random.Random(3)
    filled = []
    arrived_s = 0.0
    for n in range(300):
        arrived_s = max(arrived_s, n * 0.02 + rng.uniform(0, 0.12))
        if n > 50:
            filled += [step for step in jitter.advance(arrived_s - 0.0001) if not isinstance(step, Played)]
        jitter.put(packet(n), arrived_s)

    assert 140 <= jitter.idle_ms <= 165
    assert filled == []


def test_the_clock_runs_before_the_first_packet() -> None:
    jitter = buffer()

    fills = [short(jitter.advance(beat * 0.02 + 0.001)) for beat in range(6)]

    assert fills == [[], [], [], ["_20"], ["_20"], ["_20"]]


def test_a_stall_of_our_own_is_not_taken_for_silence_of_the_caller() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    assert short(jitter.advance(0.5)) == ["~20"]


def test_what_the_clock_filled_counts_for_the_gap_that_comes_to_light() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    filled = [step for beat in range(1, 11) for step in jitter.advance(beat * 0.02 + 0.001)]

    steps = [step for n in [11, 12, 13] for step in jitter.put(packet(n), 0.2 + n * 0.002)]
    steps += jitter.advance(0.24)

    assert short(filled) == ["~20"] * 4 + ["~20."] + ["_20"] * 3
    assert short(steps) == ["_20", "~20>11", "11", "12", "13"]
    assert jitter.ahead_ms == 0


def test_delayed_sound_is_all_played_and_then_offered_to_be_left_out_until_back_in_step() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    for beat in range(1, 11):
        jitter.advance(beat * 0.02 + 0.001)

    burst = [step for n in range(1, 11) for step in jitter.put(packet(n), 0.21)]

    assert short(burst) == [str(n) for n in range(1, 11)]
    assert jitter.ahead_ms == 160
    left_out = 0
    for n in range(11, 30):
        for step in jitter.put(packet(n), n * 0.02):
            assert isinstance(step, Played)
            if step.leave_out:
                jitter.leave_out(step)
                left_out += 1
    assert left_out == 8
    assert jitter.ahead_ms == 0


def hear(
    jitter: JitterBuffer, arrivals: Iterable[tuple[float, int]], *, wraps_at: int = 0, quiet_from: int | None = None
) -> list[tuple[float, Step]]:
    """Let packets arrive, the clock beat between them, and the quiet ones be left out; return when each step was heard.

    Args:
        jitter: takes them.
        arrivals: when each comes, and its number.
        wraps_at: the number of the packet at which sequence numbers and timestamps are 0 again.
        quiet_from: the number of the first quiet packet; None: none is.
    """
    heard = []
    coming = list(arrivals)
    beats = [(beat * 0.02 + 0.01, -1) for beat in range(int(coming[-1][0] * 50) + 1)]
    for now_s, n in sorted([*coming, *beats]):
        one = packet(n, base_seq=-wraps_at, base_ts=-wraps_at * FRAME)
        for step in jitter.advance(now_s) if n < 0 else jitter.put(one, now_s):
            quiet = quiet_from is not None and n >= quiet_from
            if not (quiet and isinstance(step, Played) and step.leave_out and jitter.leave_out(step)):
                heard.append((now_s, step))
    return heard


def test_after_two_seconds_of_loss_packets_are_played_as_soon_as_before() -> None:
    jitter = buffer()
    arrivals = [(n * 0.02, n) for n in range(300) if not 100 <= n < 200]

    heard = hear(jitter, arrivals, wraps_at=150)

    delay_ms = {
        int(step.payload): round((now_s - step.arrived_s) * 1000) for now_s, step in heard if isinstance(step, Played)
    }
    assert list(delay_ms) == [n for _, n in arrivals]
    assert {n: ms for n, ms in delay_ms.items() if ms} == {200: 20}  # it waits whether one before it is only late
    assert total_ticks(step for _, step in heard) == 300 * FRAME
    assert jitter.ahead_ms == 0
    counts = jitter.counts
    assert (counts.received, counts.lost, counts.late, counts.duplicate, counts.restarts) == (200, 100, 0, 0, 0)
    assert (counts.concealed_ms, counts.filled_ms) == (100 + 20, 1_880)  # 20: from the copy in the packet after them


def test_two_seconds_of_packets_that_come_at_once_are_all_heard_and_quiet_ones_bring_the_stream_back_into_step() -> (
    None
):
    jitter = buffer()
    late = [(4.0, n) for n in range(100, 200)]
    arrivals = [*((n * 0.02, n) for n in range(100)), *late, *((n * 0.02, n) for n in range(200, 400))]

    heard = hear(jitter, arrivals, wraps_at=150, quiet_from=250)

    played = [(int(step.payload), now_s - step.arrived_s) for now_s, step in heard if isinstance(step, Played)]
    counts = jitter.counts
    filled_ms = counts.concealed_ms + counts.filled_ms
    n_left_out = round(filled_ms / 20)
    assert 1_900 <= filled_ms <= 2_000
    assert [n for n, _ in played] == [*range(250), *range(250 + n_left_out, 400)]
    assert {delay_s for _, delay_s in played} == {0.0}
    assert counts.left_out_ms == filled_ms
    assert jitter.ahead_ms == 0
    assert total_ticks(step for _, step in heard) == 400 * FRAME
    assert (counts.received, counts.lost, counts.late, counts.restarts) == (400, 0, 0, 0)


def test_of_packets_that_are_released_at_once_no_more_are_left_out_than_the_stream_is_ahead() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)
    for beat in range(1, 5):
        jitter.advance(beat * 0.02 + 0.001)
    jitter.put(packet(2), 0.085)
    jitter.put(packet(3), 0.086)

    steps = jitter.put(packet(1), 0.087)

    assert jitter.ahead_ms == 40
    assert short(steps) == ["1", "2", "3"]
    assert [isinstance(step, Played) and step.leave_out and jitter.leave_out(step) for step in steps] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("frames", [2, 3, 4, 6])
def test_of_long_packets_each_is_waited_for_as_long_as_it_may_take(frames: int) -> None:
    jitter = JitterBuffer(clock_hz=48_000, wait_limit_ms=200, ticks_of=lambda _: frames * FRAME)
    heard: list[Step] = []
    for beat in range(600):
        now_s = beat * 0.02
        if beat % frames == 0:
            n = beat // frames
            heard += jitter.put(RtpSound(1, n, n * frames * FRAME, b"x"), now_s)
        heard += jitter.advance(now_s + 0.003)
    silent_from = len(heard)
    for beat in range(600, 620):
        heard += jitter.advance(beat * 0.02 + 0.003)

    assert all(isinstance(step, Played) for step in heard[:silent_from])
    assert not any(isinstance(step, Played) for step in heard[silent_from:])
    assert total_ticks(heard[silent_from:]) == pytest.approx((400 - 60) * 48, abs=2 * FRAME)


def test_a_malformed_packet_is_counted_and_its_time_concealed_without_waiting() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    skipped = jitter.put(packet(1, payload=MALFORMED), 0.02)
    steps = jitter.put(packet(2), 0.04)

    assert short(skipped) == []
    assert short(steps) == ["~20>2", "2"]
    assert jitter.counts.malformed == 1


def test_a_new_source_goes_on_at_once() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    steps = jitter.put(packet(0, ssrc=2, base_seq=40_000, base_ts=123_456), 0.02)

    assert short(steps) == ["0"]
    assert jitter.counts.restarts == 1


def test_one_stray_sequence_number_is_dropped_and_two_in_a_row_are_a_restart() -> None:
    jitter = buffer()
    jitter.put(packet(0), 0.0)

    assert short(jitter.put(packet(20_000), 0.02)) == []
    assert short(jitter.put(packet(1), 0.02)) == ["1"]
    assert short(jitter.put(packet(30_000), 0.04)) == []
    assert short(jitter.put(packet(30_001), 0.06)) == ["30001"]


@pytest.mark.parametrize("jump_ticks", [48_000 * 60, -48_000 * 60, -FRAME])
def test_a_jump_of_the_timestamp_is_a_new_beginning(jump_ticks: int) -> None:
    jitter = buffer()
    jitter.put(packet(0, base_ts=48_000 * 120), 0.0)

    steps = jitter.put(RtpSound(1, 1, 48_000 * 120 + FRAME + jump_ticks, b"1"), 0.02)

    assert short(steps) == ["1"]
    assert jitter.counts.restarts == 1


@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    delay_ms=st.sampled_from([0, 30, 200]),
    doubled=st.sampled_from([0.0, 0.1]),
    base_seq=st.sampled_from([0, 65_500]),
)
def test_whatever_the_network_does_time_is_kept_and_order_too(
    seed: int, loss: float, delay_ms: int, doubled: float, base_seq: int
) -> None:
    rng = random.Random(seed)
    n_packets = 100
    arrivals: list[tuple[float, int]] = [(0.0, 0)]
    for n in range(1, n_packets):
        if n < n_packets - 1 and rng.random() < loss:
            continue
        copies = 1 + (rng.random() < doubled)
        arrivals += [(n * 0.02 + rng.random() * delay_ms / 1000, n) for _ in range(copies)]
    beats = [(beat * 0.02 + 0.01, -1) for beat in range(n_packets + 10)]
    jitter = buffer()
    steps: list[Step] = []

    for now_s, n in sorted(arrivals + beats):
        steps += jitter.advance(now_s) if n < 0 else jitter.put(packet(n, base_seq=base_seq), now_s)

    played = [int(step.payload) for step in steps if isinstance(step, Played)]
    assert played == sorted(set(played))
    # All time of the sender up to the last packet, and what the clock has filled in beyond, is there once.
    assert total_ticks(steps) == (played[-1] + 1) * FRAME + round(jitter.ahead_ms * 48)
    if delay_ms <= 30:
        assert played == sorted({n for _, n in arrivals})
    if delay_ms == 0 and loss <= 0.05:
        assert jitter.counts.late == 0
