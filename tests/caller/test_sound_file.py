"""Sound files are read and written."""

import wave
from pathlib import Path

import numpy as np
import pytest

from media_server.caller.sound_file import read_sound, write_wav
from media_server.errors import BadRequestError


def test_what_is_written_is_read_back_sample_for_sample(tmp_path: Path) -> None:
    pcm = np.array([0, 1, -1, 32767, -32768] * 200, dtype=np.int16)

    write_wav(tmp_path / "a.wav", pcm, 16_000)

    assert np.array_equal(read_sound(tmp_path / "a.wav", 16_000), pcm)


def test_another_rate_keeps_the_duration_and_the_level(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)).astype(np.int16)
    write_wav(tmp_path / "tone.wav", tone, 8000)

    pcm = read_sound(tmp_path / "tone.wav", 48_000)

    assert abs(len(pcm) - 48_000) <= 48
    assert 7500 < int(np.abs(pcm).max()) < 8500


def test_stereo_is_mixed_to_mono(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.full(2 * 1600, 1000, dtype="<i2").tobytes())

    pcm = read_sound(tmp_path / "stereo.wav", 16_000)

    assert pcm.shape == (1600,)
    assert int(np.median(pcm)) in range(990, 1420)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match=r"nothing\.wav: cannot be read as sound: No such file"):
        read_sound(tmp_path / "nothing.wav", 16_000)


def test_a_file_that_is_no_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is not sound" * 100)

    with pytest.raises(BadRequestError, match=r"text\.wav: cannot be read as sound"):
        read_sound(tmp_path / "text.wav", 16_000)


def test_a_file_without_a_sample_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "empty.wav", np.zeros(0, dtype=np.int16), 16_000)

    with pytest.raises(BadRequestError, match=r"empty\.wav: holds no sound"):
        read_sound(tmp_path / "empty.wav", 16_000)
