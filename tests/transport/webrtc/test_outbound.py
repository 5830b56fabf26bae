import numpy as np
import pytest

from media_server.audio import g711
from media_server.audio.chunk import Pcm, silence
from media_server.audio.opus import OpusDecoder
from media_server.transport.webrtc.outbound import ENCODERS, Outbound
from tests.transport.webrtc.far_end import CONFIG


def tone(n_frames: int) -> Pcm:
    return (8_000 * np.sin(2 * np.pi * 440 * np.arange(n_frames * 480) / 24_000)).astype(np.int16)


def frames(pcm: Pcm) -> list[Pcm]:
    return [pcm[at : at + 480] for at in range(0, len(pcm), 480)]


class CountingEncoder:
    clock_hz = 48_000

    def __init__(self) -> None:
        self.n_encoded = 0

    def encode(self, pcm: Pcm) -> bytes:
        self.n_encoded += 1
        return str(self.n_encoded).encode()


def test_settled_silence_is_sent_again_without_being_encoded() -> None:
    encoder = CountingEncoder()
    outbound = Outbound(encoder)

    payloads = [outbound.packet(silence(480)).payload for _ in range(100)]

    assert encoder.n_encoded == 5
    assert set(payloads[5:]) == {b"5"}


def test_the_first_frame_after_silence_is_marked_as_an_onset() -> None:
    outbound = Outbound(CountingEncoder())
    loud = tone(1)

    onsets = [outbound.packet(pcm).onset for pcm in (silence(480), loud, loud, silence(480), loud)]

    assert onsets == [False, True, False, False, True]


def test_speech_after_long_silence_sounds_as_if_all_had_been_encoded() -> None:
    outbound = Outbound(ENCODERS["opus"](CONFIG))
    decoder = OpusDecoder()
    said = frames(np.concatenate((tone(10), silence(50 * 480), tone(10))))

    heard = [decoder.decode(outbound.packet(pcm).payload).astype(float).std() for pcm in said]

    assert heard[5] == pytest.approx(5_657, rel=0.1)
    assert max(heard[12:60]) < 10
    assert heard[64] == pytest.approx(5_657, rel=0.1)


def test_g711_frames_are_160_bytes_and_keep_the_level() -> None:
    outbound = Outbound(ENCODERS["pcma"](CONFIG))

    packets = [outbound.packet(pcm) for pcm in frames(tone(10))]

    assert {(len(packet.payload), packet.n_ticks) for packet in packets} == {(160, 160)}
    assert g711.decode(packets[5].payload, "alaw").astype(float).std() == pytest.approx(5_657, rel=0.05)
