import ctypes
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from media_server.audio import opus
from media_server.audio.chunk import Pcm, silence
from media_server.audio.opus import OpusDecoder, OpusEncoder, OpusError
from media_server.errors import EngineMissingError

FRAME = 480


def tone(n_frames: int, hz: float = 440.0) -> Pcm:
    return (8_000 * np.sin(2 * np.pi * hz * np.arange(n_frames * FRAME) / 24_000)).astype(np.int16)


def packets(pcm: Pcm) -> list[bytes]:
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=5, expected_loss_percent=5)
    return [encoder.encode(pcm[at : at + FRAME]) for at in range(0, len(pcm), FRAME)]


class Machine:
    """A machine that may lack a copy of libopus. The system's copy, if it has one, is the wheel's under its name."""

    def __init__(self, *, system: bool, wheel: bool) -> None:
        self._system = system
        self._wheel = wheel
        self._load = ctypes.CDLL
        self.asked: list[str] = []

    def load(self, name: str) -> ctypes.CDLL:
        """Stand in for `ctypes.CDLL`."""
        self.asked.append(name)
        there = self._wheel if Path(name).is_absolute() else self._system
        if not there:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self._load(name if Path(name).is_absolute() else str(wheel_copy()))


def wheel_copy() -> Path:
    """Return the libopus that PyAV's wheel carries; skips the test where PyAV was built here."""
    spec = find_spec("av")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    copies = [*package.parent.glob("av.libs/libopus*"), *package.glob(".dylibs/libopus*")]
    if not copies:
        pytest.skip("this PyAV is not the wheel from PyPI")
    return copies[0]


@pytest.fixture
def _nothing_loaded() -> Generator[None, None, None]:
    """Let libopus be looked for in this test, and anew after it."""
    opus.library.cache_clear()
    yield
    opus.library.cache_clear()


def hears_a_tone() -> bool:
    """Whether libopus, whichever it is, gives back what it was given."""
    decoder = OpusDecoder()
    heard = np.concatenate([decoder.decode(packet) for packet in packets(tone(20))])
    return len(heard) == 6_400 and int(np.argmax(np.abs(np.fft.rfft(heard[-3_200:])))) == 88  # of 5 Hz each


@pytest.mark.usefixtures("_nothing_loaded")
def test_the_systems_copy_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(system=True, wheel=True)
    monkeypatch.setattr(ctypes, "CDLL", machine.load)

    assert hears_a_tone()
    assert machine.asked == ["libopus.so.0"]


@pytest.mark.usefixtures("_nothing_loaded")
def test_where_the_system_has_no_copy_the_one_in_the_wheel_of_pyav_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(system=False, wheel=True)
    monkeypatch.setattr(ctypes, "CDLL", machine.load)

    assert hears_a_tone()
    assert machine.asked == ["libopus.so.0", "libopus.0.dylib", str(wheel_copy())]


@pytest.mark.usefixtures("_nothing_loaded")
def test_where_there_is_no_copy_at_all_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Machine(system=False, wheel=False).load)

    with pytest.raises(
        EngineMissingError, match=r"^libopus was not found; install libopus0 \(Debian\), opus \(Homebrew\)"
    ):
        opus.library()


def test_a_tone_comes_back_as_loud_as_it_was_at_16_khz() -> None:
    decoder = OpusDecoder()

    heard = np.concatenate([decoder.decode(packet) for packet in packets(tone(50))])

    assert len(heard) == 16_000
    settled = heard[1_600:].astype(float)
    assert np.std(settled) == pytest.approx(8_000 / 2**0.5, rel=0.03)
    assert np.argmax(np.abs(np.fft.rfft(settled[-8_000:]))) == 220  # of 2 Hz each


def test_a_packet_tells_its_length_in_ticks_of_48_khz() -> None:
    assert opus.packet_ticks(packets(tone(1))[0]) == 960


@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff", b"\x00" * 4_000])
def test_what_is_no_packet_has_no_length(payload: bytes) -> None:
    assert opus.packet_ticks(payload) == 0


@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff"])
def test_a_refused_packet_leaves_the_decoder_usable(payload: bytes) -> None:
    decoder = OpusDecoder()

    with pytest.raises(OpusError):
        decoder.decode(payload)

    assert len(decoder.decode(packets(tone(1))[0])) == 320


def test_a_lost_packet_comes_back_from_the_copy_in_the_next() -> None:
    speech = tone(40, 220.0) * np.repeat(np.arange(40) % 2, FRAME).astype(np.int16)  # every second frame is loud
    sent = packets(speech)
    whole = OpusDecoder()
    expected = [whole.decode(packet) for packet in sent]
    lossy = OpusDecoder()
    for packet in sent[:31]:
        lossy.decode(packet)

    recovered = lossy.recover(sent[32], 320)

    assert np.corrcoef(recovered, expected[31])[0, 1] > 0.9


def test_a_guess_has_exactly_the_length_asked_for() -> None:
    decoder = OpusDecoder()
    decoder.decode(packets(tone(1))[0])

    assert [len(decoder.conceal(n)) for n in (320, 7, 333, 1_920, 2_000)] == [320, 7, 333, 1_920, 2_000]


def test_silence_costs_less_than_a_tone() -> None:
    sounding = [len(packet) for packet in packets(tone(10))]
    silent = [len(packet) for packet in packets(silence(10 * FRAME))]

    assert silent[-1] < 30 < min(sounding)


def test_a_frame_of_a_length_that_opus_has_not_is_refused() -> None:
    with pytest.raises(OpusError, match="invalid argument"):
        OpusEncoder(bitrate_bps=32_000, complexity=5).encode(silence(481))


def test_celt_speaks_until_packets_get_lost_and_silk_with_its_copies_from_then_on() -> None:
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=2)
    speech = tone(30, 220.0) // 2 + tone(30, 330.0) // 4
    configurations = []
    for n, at in enumerate(range(0, len(speech), FRAME)):
        if n == 10:
            encoder.expect_loss(10)
        if n == 20:
            encoder.expect_loss(0)
        configurations.append(encoder.encode(speech[at : at + FRAME])[0] >> 3)

    # RFC 6716 section 3.1, table 2: from 16 on it is CELT.
    assert all(configuration >= 16 for configuration in configurations[:10])
    assert all(configuration < 16 for configuration in configurations[12:20])
    assert all(configuration >= 16 for configuration in configurations[22:])


@pytest.mark.parametrize(
    ("payload", "ms"),
    [
        (b"\x08", 20),
        (b"\x19\x00", 120),
        (b"\x83\x04", 10),
        (b"\x83\x3f", 0),
        (b"\x83", 0),
        (b"\xf8", 20),
        (b"\x1a", 120),
    ],
)
def test_the_first_bytes_of_a_packet_tell_its_length(payload: bytes, ms: int) -> None:
    assert opus.packet_ticks(payload) == ms * 48
