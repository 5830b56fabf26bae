"""What holds of the jitter buffer on any path: the sender's clock, the order and the delay are kept."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media_server.audio.jitter import (
    AHEAD_LIMIT_MS,
    CONCEAL_MS,
    STEP_LIMIT_MS,
    Concealed,
    JitterBuffer,
    Played,
    RtpSound,
    Step,
)
from media_server.audio.wrapping import SEQUENCES, TIMESTAMPS, signed

FRAME = 960
FRAME_S = 0.02
TICKS_PER_MS = 48
WAIT_LIMIT_MS = 200
BEAT_MS = 20
FEW = settings(max_examples=25, deadline=None)

OVERTAKEN_S = 0.045

HELD_LIMIT_MS = WAIT_LIMIT_MS + BEAT_MS
"""Who is here is given on once the gap before it has been waited for; that is seen with the next beat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A sender and the way from it. Shares are 0 to 1; `drift` is how much faster the sender's clock runs."""

    seed: int
    n_packets: int = 150
    loss: float = 0.0
    burst: float = 1.0
    doubled: float = 0.0
    jitter_ms: float = 0.0
    overtaken: float = 0.0
    stall_ms: float = 0.0
    drift: float = 0.0
    pauses: float = 0.0
    first_seq: int = 0
    first_ts: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet on its way: when it was recorded, by the sender's clock in ticks from its first, and when it comes."""

    number: int
    recorded: int
    comes_s: float
    packet: RtpSound


@dataclass(slots=True)
class Heard:
    """What came out: each step, when, and how much sound there was by then, in ticks."""

    jitter: JitterBuffer
    steps: list[tuple[float, Step, int]] = field(default_factory=list)
    most_held: int = 0

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the packets that were played, in that order."""
        return [int(step.payload) for _, step, _ in self.steps if isinstance(step, Played)]

    @property
    def ticks(self) -> int:
        """Return how long all sound is."""
        return self.steps[-1][2] if self.steps else 0


paths = st.builds(
    Path,
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    burst=st.sampled_from([1.0, 4.0]),
    doubled=st.sampled_from([0.0, 0.2]),
    jitter_ms=st.sampled_from([0.0, 20.0, 80.0]),
    overtaken=st.sampled_from([0.0, 0.1]),
    stall_ms=st.sampled_from([0.0, 400.0]),
    drift=st.sampled_from([-500e-6, 0.0, 500e-6]),
    pauses=st.sampled_from([0.0, 0.02]),
    first_seq=st.sampled_from([0, 65_400]),
    first_ts=st.sampled_from([0, (1 << 32) - 50 * FRAME]),
)


def sent(path: Path, *, ssrc: int = 1, begin_s: float = 0.0) -> list[Sent]:
    """Return what arrives of a stream. The first packet comes in time, and the last one comes."""
    rng = random.Random(path.seed)
    arrivals = []
    recorded, losing, last_s = 0, False, 0.0
    for n in range(path.n_packets):
        if n and rng.random() < path.pauses:
            recorded += FRAME * rng.randint(1, 20)  # silence of which nothing is sent (RFC 6716 section 2.1.9: DTX)
        at_s = begin_s + recorded / 48_000 / (1 + path.drift)
        stalled_s = path.stall_ms / 1000 if path.n_packets // 2 <= n < path.n_packets // 2 + 20 else 0.0
        jitter_s = rng.random() * path.jitter_ms / 1000 if n else 0.0
        last_s = max(last_s, at_s + stalled_s + jitter_s)
        comes_s = last_s + (OVERTAKEN_S if n and rng.random() < path.overtaken else 0.0)
        ends, begins = 1 / path.burst, path.loss / path.burst / max(0.01, 1 - path.loss)
        losing = rng.random() >= ends if losing else rng.random() < begins
        if not losing or n in (0, path.n_packets - 1):
            packet = RtpSound(
                ssrc, (path.first_seq + n) % (1 << 16), (path.first_ts + recorded) % (1 << 32), str(n).encode()
            )
            copies = 1 + (rng.random() < path.doubled)
            arrivals += [Sent(n, recorded, comes_s + copy * 0.013, packet) for copy in range(copies)]
        recorded += FRAME
    return sorted(arrivals, key=lambda each: each.comes_s)


def buffer() -> JitterBuffer:
    return JitterBuffer(
        clock_hz=48_000, wait_limit_ms=WAIT_LIMIT_MS, ticks_of=lambda payload: FRAME if payload.isdigit() else 0
    )


def hear(arrivals: list[Sent], *, quiet: bool = False, after_s: float = 1.0) -> Heard:
    """Let packets arrive and the clock beat; `quiet`: as much is left out as the stream is ahead."""
    heard = Heard(buffer())
    ticks = 0
    end_s = arrivals[-1].comes_s + after_s
    beats: Iterator[tuple[float, Any]] = ((n * BEAT_MS / 1000 + 0.0001, None) for n in range(int(end_s / FRAME_S)))
    for now_s, each in sorted([*((each.comes_s, each.packet) for each in arrivals), *beats], key=lambda one: one[0]):
        for step in heard.jitter.advance(now_s) if each is None else heard.jitter.put(each, now_s):
            if quiet and isinstance(step, Played) and heard.jitter.ahead_ms >= BEAT_MS:
                heard.jitter.leave_out(step)
            else:
                ticks += step.n_ticks
            heard.steps.append((now_s, step, ticks))
        heard.most_held = max(heard.most_held, len(heard.jitter._held))
    return heard


@given(path=paths)
@FEW
def test_on_any_path_packets_are_played_once_and_in_the_order_in_which_they_were_sent(path: Path) -> None:
    numbers = hear(sent(path)).numbers

    assert all(one < two for one, two in pairwise(numbers))
    assert numbers[0] == 0


@given(path=paths)
@FEW
def test_on_any_path_the_sound_is_as_long_as_the_senders_clock_says(path: Path) -> None:
    arrivals = sent(path)
    recorded = {each.number: each.recorded for each in arrivals}

    heard = hear(arrivals)

    # The end of each packet played lies where the sender has it, and what the clock filled in beyond it.
    numbers = heard.numbers
    assert heard.jitter.counts.restarts == 0
    assert heard.ticks == recorded[numbers[-1]] + FRAME + round(heard.jitter.ahead_ms * TICKS_PER_MS)


@given(path=paths)
@FEW
def test_quiet_sound_brings_the_stream_back_into_step_with_the_senders_clock(path: Path) -> None:
    arrivals = sent(replace(path, loss=0.0))
    recorded = {each.number: each.recorded for each in arrivals}

    heard = hear(arrivals, quiet=True, after_s=0.0)

    ahead_ms = heard.jitter.ahead_ms
    late_ms = path.jitter_ms + path.stall_ms + OVERTAKEN_S * 1000
    assert ahead_ms <= late_ms + 2 * BEAT_MS
    assert heard.ticks == recorded[heard.numbers[-1]] + FRAME + round(ahead_ms * TICKS_PER_MS)


@given(path=paths)
@FEW
def test_on_any_path_no_packet_that_is_here_is_held_for_longer_than_the_limit(path: Path) -> None:
    heard = hear(sent(path))

    held_ms = [(now_s - step.arrived_s) * 1000 for now_s, step, _ in heard.steps if isinstance(step, Played)]
    assert max(held_ms) <= HELD_LIMIT_MS
    assert heard.jitter.gap_wait_ms <= WAIT_LIMIT_MS


@given(path=paths)
@FEW
def test_on_any_path_no_more_is_kept_than_comes_within_the_limit(path: Path) -> None:
    heard = hear(sent(path))

    # What a stall holds up comes at once; else one packet comes each 20 ms.
    limit = (HELD_LIMIT_MS + path.jitter_ms + path.stall_ms) / BEAT_MS + 5
    assert heard.most_held <= limit
    assert len(heard.jitter._given_up) <= 100


@given(drift=st.floats(-500e-6, 500e-6), seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_a_clock_that_drifts_for_a_minute_costs_no_sound_and_no_delay(drift: float, seed: int) -> None:
    arrivals = sent(Path(seed=seed, n_packets=3_000, drift=drift, jitter_ms=10.0))

    heard = hear(arrivals, quiet=True, after_s=0.0)

    counts = heard.jitter.counts
    assert len(heard.numbers) == 3_000
    assert (counts.lost, counts.restarts) == (0, 0)
    assert counts.concealed_ms + counts.filled_ms <= 200
    assert all(step.arrived_s == now_s for now_s, step, _ in heard.steps if isinstance(step, Played))


@given(pauses=st.sampled_from([0.05, 0.2]), seed=st.integers(0, 2**32), drift=st.sampled_from([-500e-6, 500e-6]))
@FEW
def test_a_sender_that_is_silent_for_a_while_is_given_silence_for_exactly_that_while(
    pauses: float, seed: int, drift: float
) -> None:
    arrivals = sent(Path(seed=seed, pauses=pauses, drift=drift))

    heard = hear(arrivals, after_s=0.0)

    counts = heard.jitter.counts
    filled_ms = counts.concealed_ms + counts.filled_ms
    assert heard.numbers == list(range(150))
    assert counts.lost == 0
    assert filled_ms - heard.jitter.ahead_ms == (arrivals[-1].recorded / FRAME - 149) * BEAT_MS


@given(one=paths, two=paths)
@FEW
def test_a_new_source_in_the_midst_of_a_call_is_heard_whole_and_in_order(one: Path, two: Path) -> None:
    first = sent(one)
    second = sent(two, ssrc=2, begin_s=first[-1].comes_s + 0.05)
    border = len({each.number for each in first})

    heard = hear([*first, *second])

    numbers = heard.numbers
    begins = [at for at, (before, after) in enumerate(pairwise(numbers), start=1) if after <= before]
    assert len(begins) == 1
    assert begins[0] <= border
    assert numbers[begins[0]] == 0
    assert heard.jitter.counts.restarts == 1


packets = st.builds(
    RtpSound,
    st.sampled_from([1, 1, 1, 2]),
    st.one_of(st.integers(0, 65_535), st.sampled_from([0, 1, 2, 3, 65_534, 65_535])),
    st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, FRAME, 2 * FRAME, 2**31, 2**32 - 1])),
    st.sampled_from([b"1", b"x", b""]),
)
streams = st.builds(
    lambda ssrc, n, jump_frames, payload: RtpSound(
        ssrc, (65_530 + n) % SEQUENCES, (n - 3 + jump_frames) * FRAME % TIMESTAMPS, payload
    ),
    st.sampled_from([1] * 9 + [2]),
    st.integers(0, 20),
    st.sampled_from([0] * 8 + [10, 3_000]),
    st.sampled_from([b"1"] * 7 + [b"x"]),
)
"""Of two that are nearly sane: any number of copies in any order, and now and then a jump of the clock."""

waits_s = st.sampled_from([0.0, 0.005, 0.02])
happenings = st.lists(
    st.tuples(st.one_of(waits_s, waits_s, st.floats(0, 2)), st.one_of(st.none(), streams, streams, packets)),
    max_size=60,
)
Happenings: TypeAlias = list[tuple[float, RtpSound | None]]
"""Seconds later, a packet that anybody may have sent, or a beat."""


@given(happenings=happenings)
def test_whatever_packets_say_of_themselves_time_goes_on_and_nothing_is_kept_for_good(happenings: Happenings) -> None:
    jitter = buffer()
    steps: list[Step] = []
    now_s = 0.0
    for wait_s, packet in happenings:
        now_s += wait_s
        steps += jitter.advance(now_s) if packet is None else jitter.put(packet, now_s)

    n_beats = 100
    filled = [step for beat in range(n_beats) for step in jitter.advance(now_s + 0.3 + beat * FRAME_S)]

    assert all(step.n_ticks > 0 for step in [*steps, *filled])
    assert jitter._held == {}
    assert jitter.ahead_ms <= AHEAD_LIMIT_MS + n_beats * BEAT_MS + 2_000 * (len(happenings) + 1)
    silence_ms = sum(step.n_ticks for step in filled if not isinstance(step, Played)) / TICKS_PER_MS
    assert silence_ms >= (n_beats - 20) * BEAT_MS


def put_all(happenings: Happenings) -> tuple[JitterBuffer, list[RtpSound], list[Step], float]:
    """Return the buffer after all that, what was put (a good packet holds its own place here), the steps, and when."""
    jitter = buffer()
    put: list[RtpSound] = []
    steps: list[Step] = []
    now_s = 0.0
    for wait_s, packet in happenings:
        now_s += wait_s
        if packet is None:
            steps += jitter.advance(now_s)
        else:
            put.append(replace(packet, payload=str(len(put)).encode()) if packet.payload.isdigit() else packet)
            steps += jitter.put(put[-1], now_s)
    now_s += 0.3
    return jitter, put, [*steps, *jitter.advance(now_s)], now_s


@given(happenings=happenings)
def test_whatever_packets_say_each_is_played_at_most_once_and_in_order_but_for_restarts(happenings: Happenings) -> None:
    jitter, put, steps, _ = put_all(happenings)

    numbers = [int(step.payload) for step in steps if isinstance(step, Played)]
    played = [put[number] for number in numbers]
    begins = [
        two
        for one, two in pairwise(played)
        if two.ssrc != one.ssrc or signed(two.sequence_number - one.sequence_number, SEQUENCES) <= 0
    ]
    assert len(set(numbers)) == len(numbers)
    assert len(begins) <= jitter.counts.restarts


@given(happenings=happenings)
def test_whatever_packets_say_each_is_played_or_counted(happenings: Happenings) -> None:
    jitter, put, steps, _ = put_all(happenings)

    counts = jitter.counts
    n_good = sum(packet.payload.isdigit() for packet in put)
    n_played = sum(isinstance(step, Played) for step in steps)
    assert counts.received == len(put)
    assert counts.malformed == len(put) - n_good
    assert n_played <= n_good <= n_played + counts.lost + counts.late + counts.duplicate


@given(happenings=happenings)
def test_whatever_packets_say_no_more_sound_comes_out_than_their_own_the_time_that_passed_and_a_step_for_each(
    happenings: Happenings,
) -> None:
    jitter, _, steps, end_s = put_all(happenings)

    n_played = sum(isinstance(step, Played) for step in steps)
    made_up_ms = sum(step.n_ticks for step in steps if not isinstance(step, Played)) / TICKS_PER_MS
    assert made_up_ms == pytest.approx(jitter.counts.concealed_ms + jitter.counts.filled_ms)
    assert made_up_ms <= end_s * 1000 + n_played * STEP_LIMIT_MS


@given(happenings=happenings)
def test_whatever_packets_say_no_guess_is_longer_than_its_limit_and_one_recovered_packet(
    happenings: Happenings,
) -> None:
    _, _, steps, _ = put_all(happenings)

    guessed_ms = 0.0
    for step in steps:
        if isinstance(step, Played):
            guessed_ms = 0.0
        elif isinstance(step, Concealed):
            guessed_ms += step.n_ticks / TICKS_PER_MS
        assert guessed_ms <= CONCEAL_MS + FRAME / TICKS_PER_MS
