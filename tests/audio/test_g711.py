import numpy as np
import pytest

from media_server.audio import g711

# ITU-T G.711, tables 1a to 2b: codes of the largest, the smallest and a middle value.
KNOWN = [
    ("ulaw", 0x80, 32_124),
    ("ulaw", 0x00, -32_124),
    ("ulaw", 0xFF, 0),
    ("ulaw", 0xCE, 988),
    ("alaw", 0xAA, 32_256),
    ("alaw", 0x2A, -32_256),
    ("alaw", 0xD5, 8),
    ("alaw", 0xFA, 1_008),
]


@pytest.mark.parametrize(("law", "code", "value"), KNOWN)
def test_known_codes_have_their_values(law: g711.Law, code: int, value: int) -> None:
    assert g711.decode(bytes([code]), law).tolist() == [value]


@pytest.mark.parametrize(("law", "code", "value"), KNOWN)
def test_known_values_have_their_codes(law: g711.Law, code: int, value: int) -> None:
    assert g711.encode(np.array([value], dtype=np.int16), law) == bytes([code])


@pytest.mark.parametrize("law", ["ulaw", "alaw"])
def test_every_sample_comes_back_within_half_a_step(law: g711.Law) -> None:
    samples = np.arange(-32_000, 32_001).astype(np.int16)

    error = np.abs(g711.decode(g711.encode(samples, law), law).astype(int) - samples)

    assert np.all(error <= np.maximum(8, np.abs(samples.astype(int)) // 16))


@pytest.mark.parametrize(
    ("filtered", "from_hz", "to_hz"), [(g711.Upsampler(), 8_000, 16_000), (g711.Downsampler(), 24_000, 8_000)]
)
def test_the_filters_give_a_frame_for_a_frame_and_keep_a_tone(
    filtered: g711.Upsampler | g711.Downsampler, from_hz: int, to_hz: int
) -> None:
    tone = (8_000 * np.sin(2 * np.pi * 1_000 * np.arange(from_hz) / from_hz)).astype(np.int16)
    n = from_hz // 50

    frames = [filtered.push(tone[at : at + n]) for at in range(0, from_hz, n)]

    assert {len(frame) for frame in frames} == {to_hz // 50}
    settled = np.concatenate(frames)[to_hz // 2 :].astype(float)
    assert np.std(settled) == pytest.approx(8_000 / 2**0.5, rel=0.02)
    assert np.argmax(np.abs(np.fft.rfft(settled))) == 500  # of 2 Hz each
