import numpy as np
import pytest

from media_server.audio.chunk import Pcm, silence
from media_server.audio.resample import Resampler

RATES = [(16_000, 24_000), (22_050, 24_000), (24_000, 16_000), (48_000, 16_000)]


def tone(hz: float, rate_hz: int) -> Pcm:
    """Return a second of a sine at an amplitude of 8,000."""
    return (8_000 * np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz)).astype(np.int16)


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_a_tone_stays_where_it_was_and_as_loud_as_it_was(from_hz: int, to_hz: int) -> None:
    resampled = Resampler(from_hz, to_hz).push(tone(1_000, from_hz), last=True)

    assert len(resampled) == to_hz
    error = resampled[500:-500] - tone(1_000, to_hz)[500:-500].astype(float)
    assert np.std(error) < 2  # of 5,657


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_what_20_ms_become_is_there_at_once_but_for_2_ms(from_hz: int, to_hz: int) -> None:
    resampler = Resampler(from_hz, to_hz)
    frame = silence(from_hz // 50)

    given_ms, held_ms = 0.0, []
    for _ in range(50):
        given_ms += 20 - len(resampler.push(frame)) * 1000 / to_hz
        held_ms.append(given_ms)

    assert max(held_ms) < 2


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_chunks_of_any_length_make_the_same_sound_as_the_whole(from_hz: int, to_hz: int) -> None:
    whole = Resampler(from_hz, to_hz).push(tone(440, from_hz), last=True)
    resampler = Resampler(from_hz, to_hz)
    parts = np.split(tone(440, from_hz), [0, 1, 8, 300, 1_234, 9_999])

    pieces = [resampler.push(part) for part in parts] + [resampler.push(silence(0), last=True)]

    joined = np.concatenate(pieces)
    assert len(joined) == len(whole)
    assert np.abs(joined.astype(int) - whole).max() <= 1  # floats are rounded once more where stretches are many


def test_a_tone_above_what_the_new_rate_can_carry_is_gone() -> None:
    resampled = Resampler(48_000, 16_000).push(tone(9_000, 48_000), last=True)

    assert np.abs(resampled[500:-500]).max() < 8  # of 8,000: 60 dB


def test_the_loudest_sound_is_clipped_and_does_not_wrap() -> None:
    square = np.repeat(np.array([32_767, -32_768] * 100, dtype=np.int16), 40)

    resampled = Resampler(16_000, 24_000).push(square, last=True).astype(int)

    assert np.abs(np.diff(resampled)).max() < 50_000


def test_one_rate_is_left_as_it_is() -> None:
    pcm = tone(440, 24_000)

    assert Resampler(24_000, 24_000).push(pcm) is pcm
