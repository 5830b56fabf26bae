import itertools
import random

import numpy as np
import pytest

from media_server.audio import g711
from media_server.audio.chunk import AudioChunk, Pcm, silence
from media_server.audio.g722 import G722Encoder
from media_server.audio.jitter import RtpSound
from media_server.audio.live_queue import LiveQueue
from media_server.audio.opus import OpusEncoder
from media_server.transport.webrtc.inbound import DECODERS, Inbound


def tone(n_frames: int, rate_hz: int = 24_000) -> Pcm:
    n = n_frames * rate_hz // 50
    return (8_000 * np.sin(2 * np.pi * 440 * np.arange(n) / rate_hz)).astype(np.int16)


def opus_payloads(n_frames: int, pcm: Pcm | None = None) -> list[bytes]:
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=5, expected_loss_percent=5)
    pcm = tone(n_frames) if pcm is None else pcm
    return [encoder.encode(pcm[n * 480 : (n + 1) * 480]) for n in range(n_frames)]


def sound(n: int, payload: bytes, n_ticks: int = 960) -> RtpSound:
    return RtpSound(1, n, n * n_ticks, payload)


class Kept(LiveQueue):
    """Keeps all that is put in."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[AudioChunk] = []

    def put(self, chunk: AudioChunk, arrived_s: float) -> None:
        self.chunks.append(chunk)


class Ear:
    """What was heard."""

    def __init__(self) -> None:
        self.queue = Kept()

    async def chunks(self) -> list[AudioChunk]:
        return self.queue.chunks


async def test_a_call_with_5_percent_loss_keeps_its_length_and_its_clock() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["opus"](), ear.queue, wait_limit_ms=200, started_s=0.0)
    rng = random.Random(1)

    for n, payload in enumerate(opus_payloads(500)):
        if rng.random() >= 0.05:
            inbound.receive(sound(n, payload), n * 0.02)
        inbound.advance(n * 0.02 + 0.01)

    chunks = await ear.chunks()
    assert inbound.counts.lost > 10
    assert sum(chunk.duration_ms for chunk in chunks) == pytest.approx(10_000, abs=40)
    assert all(one.end_pts == two.pts for one, two in itertools.pairwise(chunks))
    assert {chunk.rate_hz for chunk in chunks} == {16_000}
    quiet = [chunk for chunk in chunks[5:] if chunk.pcm.astype(float).std() < 1_000]
    assert len(quiet) <= 1  # what was lost was made up for, unless two in a row were


async def test_the_queue_is_told_when_the_packet_arrived_not_when_it_was_released() -> None:
    queue = LiveQueue(1_000)
    inbound = Inbound(DECODERS["opus"](), queue, wait_limit_ms=200, started_s=0.0)
    payloads = opus_payloads(3)

    for n, now_s in ((0, 0.0), (2, 0.04), (1, 0.05)):
        inbound.receive(sound(n, payloads[n]), now_s)

    items = [await queue.get() for _ in range(3)]
    assert [item[1] for item in items if item] == [0.0, 0.05, 0.04]


async def test_nothing_received_is_20_ms_of_silence_every_20_ms() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["opus"](), ear.queue, wait_limit_ms=200, started_s=0.0)

    for beat in range(1, 51):
        inbound.advance(beat * 0.02 + 0.001)

    chunks = await ear.chunks()
    assert [len(chunk.pcm) for chunk in chunks] == [320] * 48
    assert [chunk.pts for chunk in chunks[:3]] == [0, 320, 640]


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("opus", b"\xff\xff\xff"),
        *((codec, payload) for codec in DECODERS for payload in (b"", bytes(4_000))),
    ],
)
async def test_a_malformed_payload_is_counted_and_the_call_goes_on(codec: str, payload: bytes) -> None:
    ear = Ear()
    inbound = Inbound(DECODERS[codec](), ear.queue, wait_limit_ms=200, started_s=0.0)
    good = opus_payloads(1)[0] if codec == "opus" else bytes(160)
    n_ticks = 960 if codec == "opus" else 160

    for n, one in enumerate([good, payload, good]):
        inbound.receive(sound(n, one, n_ticks), n * 0.02)

    assert [len(chunk.pcm) for chunk in await ear.chunks()] == [320, 320, 320]
    assert inbound.counts.malformed == 1


async def test_a_packet_that_begins_well_but_that_libopus_refuses_is_concealed_and_counted_as_malformed() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["opus"](), ear.queue, wait_limit_ms=200, started_s=0.0)
    payloads = opus_payloads(12)
    payloads[10] = b"\xf1\x00"  # two frames of 10 ms that are equally long (RFC 6716 section 3.2.3) share one byte

    for n, payload in enumerate(payloads):
        inbound.receive(sound(n, payload), n * 0.02)

    chunks = await ear.chunks()
    counts = inbound.counts
    assert [len(chunk.pcm) for chunk in chunks] == [320] * 12
    assert chunks[10].pcm.astype(float).std() > 1_000
    assert (counts.received, counts.malformed, counts.lost, counts.concealed_ms) == (12, 1, 0, 20)


class Steady:
    """A decoder to which all sound is the same."""

    clock_hz = 48_000

    def ticks(self, payload: bytes) -> int:
        return 960

    def decode(self, payload: bytes) -> Pcm:
        return np.full(320, 1_000, dtype=np.int16)

    def conceal(self, n_samples: int, following: bytes | None) -> Pcm:
        return np.full(n_samples, 1_000, dtype=np.int16)


async def test_a_guess_fades_over_its_last_20_ms_when_no_more_may_be_guessed() -> None:
    ear = Ear()
    inbound = Inbound(Steady(), ear.queue, wait_limit_ms=200, started_s=0.0)
    inbound.receive(sound(0, b"x"), 0.0)

    for beat in range(1, 9):
        inbound.advance(beat * 0.02 + 0.001)

    heard = [chunk.pcm for chunk in await ear.chunks()]
    assert [set(pcm.tolist()) for pcm in heard[:5]] == [{1_000}] * 5  # a packet and 80 ms
    last = heard[5]
    assert (last[0], last[-1]) == (1_000, 0)
    assert last[160] == pytest.approx(500, abs=3)
    assert set(np.diff(last)) <= {-3, -4}
    assert [set(pcm.tolist()) for pcm in heard[6:]] == [{0}]


async def test_in_a_long_gap_the_guess_fades_before_the_silence_and_what_is_recovered_after_it_is_whole() -> None:
    ear = Ear()
    inbound = Inbound(Steady(), ear.queue, wait_limit_ms=200, started_s=0.0)

    for n, now_s in ((0, 0.0), (11, 0.05), (12, 0.07)):
        inbound.receive(sound(n, b"x"), now_s)

    _, head, middle, tail, *_ = [chunk.pcm for chunk in await ear.chunks()]
    assert set(head[:1_280].tolist()) == {1_000}
    assert head[1_440] == pytest.approx(500, abs=3)
    assert head[-1] == 0
    assert (len(middle), set(middle.tolist())) == (1_280, {0})
    assert (len(tail), set(tail.tolist())) == (320, {1_000})


async def test_two_seconds_held_back_by_the_network_are_heard_whole_and_made_up_for_in_the_quiet_after_them() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["opus"](), ear.queue, wait_limit_ms=200, started_s=0.0)
    payloads = opus_payloads(400, np.concatenate((tone(210), silence(190 * 480))))
    comes_s = [4.0 if 100 <= n < 200 else n * 0.02 for n in range(400)]
    beats = [(beat * 0.02 + 0.01, -1) for beat in range(400)]

    for now_s, n in sorted([*((at_s, n) for n, at_s in enumerate(comes_s)), *beats]):
        if n < 0:
            inbound.advance(now_s)
        else:
            inbound.receive(sound(n, payloads[n]), now_s)

    chunks = await ear.chunks()
    counts = inbound.counts
    assert counts.left_out_ms == counts.concealed_ms + counts.filled_ms >= 1_900
    assert sum(chunk.duration_ms for chunk in chunks) == 8_000
    assert sum(chunk.pcm.astype(float).std() > 3_000 for chunk in chunks) >= 209  # the codec's own delay blurs one end
    assert (counts.lost, counts.late, counts.restarts) == (0, 0, 0)


async def test_after_a_delay_of_the_network_quiet_sound_is_left_out_once_the_turn_is_over() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["opus"](), ear.queue, wait_limit_ms=200, started_s=0.0)
    payloads = opus_payloads(120, np.concatenate((tone(20), silence(100 * 480))))
    for n in range(10):
        inbound.receive(sound(n, payloads[n]), n * 0.02)
    for beat in range(10, 20):
        inbound.advance(beat * 0.02 + 0.001)

    for n in range(10, 120):
        inbound.receive(sound(n, payloads[n]), max(0.4, n * 0.02))

    assert inbound.counts.concealed_ms + inbound.counts.filled_ms == 160
    assert inbound.counts.left_out_ms == 160
    assert sum(chunk.duration_ms for chunk in await ear.chunks()) == 2_400


@pytest.mark.parametrize("codec", ["pcmu", "g722"])
async def test_a_telephones_sound_is_heard_at_16_khz_and_a_lost_packet_fades(codec: str) -> None:
    ear = Ear()
    inbound = Inbound(DECODERS[codec](), ear.queue, wait_limit_ms=200, started_s=0.0)
    wide = codec == "g722"
    payload = G722Encoder().encode(tone(12, 16_000)) if wide else g711.encode(tone(12, 8_000), "ulaw")

    for n in [0, 1, 2, 3, 4, 6, 7, 8, 9]:
        inbound.receive(sound(n, payload[n * 160 : (n + 1) * 160], 160), n * 0.02)

    chunks = await ear.chunks()
    assert [len(chunk.pcm) for chunk in chunks] == [320] * 10
    levels = [chunk.pcm.astype(float).std() for chunk in chunks]
    assert levels[4] == pytest.approx(5_657, rel=0.05)
    assert levels[5] == pytest.approx(2_828, rel=0.05)
    assert levels[6] == pytest.approx(5_657, rel=0.05)


async def test_a_pressed_key_is_not_missed_as_lost_sound_and_time_goes_on() -> None:
    ear = Ear()
    inbound = Inbound(DECODERS["pcmu"](), ear.queue, wait_limit_ms=200, started_s=0.0)
    payload = g711.encode(tone(1, 8_000), "ulaw")

    for n in range(40):
        # Ten packets tell of one press of 200 ms: nothing else is sent meanwhile.
        if 10 <= n < 20:
            inbound.pass_over(sound(n, b"\x05\x0a\x00\xa0", 160))
        else:
            inbound.receive(sound(n, payload, 160), n * 0.02)
        inbound.advance(n * 0.02 + 0.001)

    assert inbound.counts.lost == 0
    assert inbound.counts.received == 30
    assert inbound.counts.restarts == 0
    assert sum(chunk.duration_ms for chunk in await ear.chunks()) == 800
