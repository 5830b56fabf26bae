import numpy as np
import pytest

from media_server.audio.chunk import HEARING_HZ, Pcm, silence
from media_server.caller.chirp import Stretch, chirps, find_delays_ms


def echo(delay_ms: float, *, gain: float = 0.3, noise: float = 200.0) -> list[Stretch]:
    """Return three seconds of chirps, quieter and later, in packets of 20 ms."""
    sound = np.concatenate([silence(round(delay_ms * 16)), chirps(3, HEARING_HZ)])
    loud = sound * gain + np.random.default_rng(1).normal(0, noise, len(sound))
    pcm: Pcm = loud.astype(np.int16)
    return [Stretch(100.0 + n * 0.02, pcm[n * 320 : (n + 1) * 320]) for n in range(len(pcm) // 320)]


def test_the_delay_of_each_chirp_is_found_to_a_tenth_of_a_millisecond() -> None:
    assert find_delays_ms([100.0, 101.0, 102.0], echo(73.5)) == pytest.approx([73.5] * 3, abs=0.1)


def test_what_was_lost_is_not_found() -> None:
    heard = [stretch for stretch in echo(30) if not 101.0 < stretch.at_s < 101.3]

    assert find_delays_ms([100.0, 101.0, 102.0], heard) == pytest.approx([30, 30], abs=0.1)


def test_noise_is_no_chirp() -> None:
    assert find_delays_ms([100.0, 101.0], echo(30, gain=0.0)) == []


def test_nothing_heard_is_no_delay() -> None:
    assert find_delays_ms([100.0], []) == []
