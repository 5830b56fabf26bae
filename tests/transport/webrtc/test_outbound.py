import numpy as np
import pytest

from media_server.audio import g711
from media_server.audio.chunk import Pcm, silence
from media_server.audio.clip import Clip
from media_server.audio.g722 import G722Decoder
from media_server.audio.opus import OpusDecoder
from media_server.transport.webrtc.outbound import ENCODERS, Outbound, Outgoing
from tests.transport.webrtc.far_end import CONFIG


def tone(n_frames: int) -> Pcm:
    return (8_000 * np.sin(2 * np.pi * 440 * np.arange(n_frames * 480) / 24_000)).astype(np.int16)


def frames(pcm: Pcm) -> list[Pcm]:
    return [pcm[at : at + 480] for at in range(0, len(pcm), 480)]


class CountingEncoder:
    clock_hz = 48_000

    def __init__(self) -> None:
        self.n_encoded = 0
        self.expected_percent: list[int] = []

    def encode(self, pcm: Pcm) -> bytes:
        self.n_encoded += 1
        return str(self.n_encoded).encode()

    def ready(self, clip: Clip, frame: int) -> bytes | None:
        return None

    def expect_loss(self, percent: int) -> None:
        self.expected_percent.append(percent)


def test_settled_silence_is_sent_again_without_being_encoded() -> None:
    encoder = CountingEncoder()
    outbound = Outbound(encoder)

    payloads = [outbound.packet(silence(480)).payload for _ in range(100)]

    assert encoder.n_encoded == 5
    assert set(payloads[5:]) == {b"5"}


def test_what_cannot_be_heard_is_silence() -> None:
    encoder = CountingEncoder()
    outbound = Outbound(encoder)

    for _ in range(50):
        outbound.packet(np.full(480, 4, dtype=np.int16))

    assert encoder.n_encoded == 5


def test_copies_are_sent_while_the_far_end_reports_loss_and_ten_seconds_longer() -> None:
    encoder = CountingEncoder()
    outbound = Outbound(encoder)

    for now_s, share in [
        (0, 0.0),
        (1, 0.02),
        (2, 0.02),
        (3, 0.12),
        (4, 0.6),
        (5, 0.0),
        (13.9, 0.0),
        (14.1, 0.0),
        (15, 0.0),
    ]:
        outbound.expect_loss(share, now_s)

    assert encoder.expected_percent == [5, 12, 30, 0]


def test_the_first_frame_after_silence_is_marked_as_an_onset() -> None:
    outbound = Outbound(CountingEncoder())
    loud = tone(1)

    onsets = [outbound.packet(pcm).onset for pcm in (silence(480), loud, loud, silence(480), loud)]

    assert onsets == [False, True, False, False, True]


@pytest.mark.parametrize(("codec", "decoder"), [("opus", OpusDecoder()), ("g722", G722Decoder())])
def test_speech_after_long_silence_sounds_as_if_all_had_been_encoded(
    codec: str, decoder: OpusDecoder | G722Decoder
) -> None:
    outbound = Outbound(ENCODERS[codec](CONFIG))
    said = frames(np.concatenate((tone(10), silence(50 * 480), tone(10))))

    heard = [decoder.decode(outbound.packet(pcm).payload).astype(float).std() for pcm in said]

    assert heard[5] == pytest.approx(5_657, rel=0.1)
    assert max(heard[12:60]) < 10
    assert heard[64] == pytest.approx(5_657, rel=0.1)


def test_g722_frames_are_160_bytes_from_the_first_and_keep_the_level() -> None:
    outbound = Outbound(ENCODERS["g722"](CONFIG))
    decoder = G722Decoder()

    packets = [outbound.packet(pcm) for pcm in frames(tone(10))]

    assert {len(packet.payload) for packet in packets} == {160}
    assert outbound.n_ticks == 160
    levels = [decoder.decode(packet.payload).astype(float).std() for packet in packets]
    assert levels[5] == pytest.approx(5_657, rel=0.05)


def test_g711_frames_are_160_bytes_and_keep_the_level() -> None:
    outbound = Outbound(ENCODERS["pcma"](CONFIG))

    packets = [outbound.packet(pcm) for pcm in frames(tone(10))]

    assert {len(packet.payload) for packet in packets} == {160}
    assert outbound.n_ticks == 160
    assert g711.decode(packets[5].payload, "alaw").astype(float).std() == pytest.approx(5_657, rel=0.05)


def test_a_clip_that_was_sent_before_is_sent_again_without_being_encoded() -> None:
    clip = Clip(tone(20))
    sent = [[made.payload for made in said(Outbound(ENCODERS["opus"](CONFIG)), clip)] for _ in range(2)]

    assert sent[0] == sent[1]
    assert all(one is other for one, other in zip(*sent, strict=True))


def test_where_packets_get_lost_a_clip_is_encoded_with_copies() -> None:
    clip = Clip(tone(20))
    clean, lossy = Outbound(ENCODERS["opus"](CONFIG)), Outbound(ENCODERS["opus"](CONFIG))
    lossy.expect_loss(0.1, 0.0)

    sent = [[made.payload for made in said(outbound, clip)] for outbound in (clean, lossy)]

    assert not set(sent[0]) & set(sent[1])


def test_there_is_no_click_where_a_clip_is_left_in_the_middle() -> None:
    outbound = Outbound(ENCODERS["opus"](CONFIG))
    clip = Clip(tone(40))
    decoder = OpusDecoder()

    # 20 frames of 440 Hz are a whole number of waves: what follows goes on where the clip was left.
    whole = [*said(outbound, clip, 20), *(outbound.packet(pcm) for pcm in frames(tone(20)))]
    heard = np.concatenate([decoder.decode(made.payload) for made in whole]).astype(float)

    steepest = 8_000 * 2 * np.pi * 440 / 16_000
    assert np.abs(np.diff(heard[3_200:])).max() < 1.1 * steepest


@pytest.mark.parametrize("before", [silence(10 * 480), tone(10)], ids=["silence", "speech"])
def test_a_clip_is_as_loud_as_it_was_made_from_its_first_packet_on(before: Pcm) -> None:
    outbound = Outbound(ENCODERS["opus"](CONFIG))
    decoder = OpusDecoder()
    for pcm in frames(before):
        decoder.decode(outbound.packet(pcm).payload)

    heard = np.concatenate([decoder.decode(made.payload) for made in said(outbound, Clip(tone(20)), 5)]).astype(float)

    # The first 6.5 ms are of what was before: the delay of Opus.
    assert [heard[at : at + 80].std() for at in range(120, 1_600, 80)] == pytest.approx([5_657] * 19, rel=0.2)


def test_a_clip_that_was_left_is_not_joined_again_in_its_middle() -> None:
    outbound = Outbound(ENCODERS["opus"](CONFIG))
    clip = Clip(tone(20))
    ready = {made.payload for made in said(Outbound(ENCODERS["opus"](CONFIG)), clip)}

    said(outbound, clip, 5)
    outbound.packet(clip.frame(5))
    after = [outbound.packet(clip.frame(frame), (clip, frame)).payload for frame in (6, 7)]
    again = [made.payload for made in said(outbound, clip, 8)]

    assert ready.isdisjoint(after)
    assert ready.issuperset(again)


def said(outbound: Outbound, clip: Clip, n_frames: int = 20) -> list[Outgoing]:
    return [outbound.packet(pcm, (clip, frame)) for frame, pcm in enumerate(frames(clip.pcm)[:n_frames])]
