import itertools
from pathlib import Path

import numpy as np
import pytest

from media_server.audio.chunk import Pcm
from media_server.audio.g722 import G722Decoder, G722Encoder

TASKS = Path("/proc/self/task")


def tone(n_frames: int, hz: float = 5_000) -> Pcm:
    return (8_000 * np.sin(2 * np.pi * hz * np.arange(n_frames * 320) / 16_000)).astype(np.int16)


def frames(pcm: Pcm) -> list[Pcm]:
    return [pcm[at : at + 320] for at in range(0, len(pcm), 320)]


def test_20_ms_are_160_bytes() -> None:
    encoder = G722Encoder()

    assert {len(encoder.encode(frame)) for frame in frames(tone(50))} == {160}


def test_a_tone_above_what_telephones_carry_comes_back_as_loud_as_it_was() -> None:
    encoder, decoder = G722Encoder(), G722Decoder()

    heard = np.concatenate([decoder.decode(encoder.encode(frame)) for frame in frames(tone(50))])

    assert len(heard) == 16_000
    settled = heard[8_000:].astype(float)
    assert np.std(settled) == pytest.approx(8_000 / 2**0.5, rel=0.03)
    assert np.argmax(np.abs(np.fft.rfft(settled))) == 2_500  # of 2 Hz each


def test_there_is_no_seam_between_packets() -> None:
    encoder, decoder = G722Encoder(), G722Decoder()

    heard = [decoder.decode(encoder.encode(frame)) for frame in frames(tone(20, 200))]

    # 200 Hz at 8,000 moves by at most 628 a sample.
    assert all(abs(int(two[0]) - int(one[-1])) < 900 for one, two in itertools.pairwise(heard))


def test_an_empty_packet_leaves_the_decoder_usable() -> None:
    decoder = G722Decoder()

    assert len(decoder.decode(b"")) == 0
    assert len(decoder.decode(bytes(160))) == 320


@pytest.mark.parametrize("n_bytes", [1, 80, 240, 960])
def test_a_packet_of_any_length_is_decoded_whole(n_bytes: int) -> None:
    assert len(G722Decoder().decode(bytes(n_bytes))) == 2 * n_bytes


@pytest.mark.skipif(not TASKS.exists(), reason="threads of native code are counted in Linux's /proc")
def test_a_stream_has_no_threads() -> None:
    before = len(list(TASKS.iterdir()))

    decoder, encoder = G722Decoder(), G722Encoder()
    decoder.decode(encoder.encode(tone(1)))

    assert len(list(TASKS.iterdir())) == before
