"""An encoder setting is judged by what it really makes."""

import numpy as np
import pytest

from media_server.audio.chunk import Pcm
from media_server.config import load_config
from tests.bench.codec import SETTINGS, Setting, code, kind


def vowel(seconds: int) -> Pcm:
    """Return harmonics of 120 Hz that swell four times a second: int16, 24 kHz."""
    at_s = np.arange(seconds * 24_000) / 24_000
    voice = sum(np.sin(2 * np.pi * 120 * n * at_s) / n for n in range(1, 40))
    return (4_000 * voice * np.abs(np.sin(4 * np.pi * at_s))).astype(np.int16)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_encoder_that_is_asked_for_is_the_one_that_works(setting: Setting) -> None:
    made = kind(code(vowel(1), setting).packets)

    assert made in ({"SILK", "hybrid"} if setting.name == "SILK" else {"CELT"})


def test_the_servers_own_setting_is_among_them() -> None:
    ours = load_config({}).config.webrtc
    setting = Setting(expected_loss_percent=0, bitrate_bps=ours.bitrate_bps, complexity=ours.complexity)

    assert setting in SETTINGS


def test_every_frame_becomes_one_packet_and_20_ms_of_what_is_heard() -> None:
    coded = code(vowel(1), SETTINGS[0])

    assert len(coded.packets) == 50
    assert coded.heard.shape == (16_000,)


@pytest.mark.parametrize(
    ("first_byte", "expected"), [(11 << 3, "SILK"), (12 << 3, "hybrid"), (15 << 3, "hybrid"), (16 << 3, "CELT")]
)
def test_a_packet_tells_its_encoder_by_its_first_five_bits(first_byte: int, expected: str) -> None:
    assert kind([bytes([first_byte, 0])]) == expected
