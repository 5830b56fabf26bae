import numpy as np

from media_server.audio.chunk import Pcm
from media_server.audio.clip import CATCH_UP_FRAMES, Clip


class Numbering:
    """An encoder whose packets are the numbers of the frames that it was given."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.n_encoded = 0

    def begin(self) -> "Numbering":
        self.n_begun += 1
        return self

    def __call__(self, pcm: Pcm) -> bytes:
        self.n_encoded += 1
        return bytes([pcm[0]])


def clip(n_frames: int) -> Clip:
    return Clip(np.repeat(np.arange(n_frames, dtype=np.int16), 480))


def test_the_last_frame_is_filled_up_with_silence() -> None:
    filled = Clip(np.ones(481, dtype=np.int16))

    assert filled.pcm.shape == (960,)
    assert filled.pcm.sum() == 481


def test_each_frame_is_encoded_once_however_often_it_is_asked_for() -> None:
    encoder = Numbering()
    spoken = clip(4)

    packets = [spoken.packet("opus", frame, encoder.begin) for _ in range(3) for frame in range(4)]

    assert packets == [b"\x00", b"\x01", b"\x02", b"\x03"] * 3
    assert (encoder.n_begun, encoder.n_encoded) == (1, 4)


def test_frames_that_were_passed_over_are_made_up_for_in_order() -> None:
    encoder = Numbering()

    assert clip(4).packet("opus", 3, encoder.begin) == b"\x03"
    assert encoder.n_encoded == 4


def test_a_frame_too_far_ahead_has_no_packet_yet() -> None:
    encoder = Numbering()

    assert clip(CATCH_UP_FRAMES + 3).packet("opus", CATCH_UP_FRAMES + 1, encoder.begin) is None
    assert encoder.n_encoded == 0


def test_each_form_has_packets_of_its_own() -> None:
    spoken, encoder = clip(1), Numbering()

    spoken.packet(("opus", 32_000), 0, encoder.begin)
    spoken.packet(("opus", 64_000), 0, encoder.begin)

    assert encoder.n_begun == 2
