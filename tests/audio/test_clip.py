import numpy as np

from media_server.audio.chunk import Pcm
from media_server.audio.clip import Clip


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


def test_who_says_a_clip_further_than_others_did_goes_on_with_their_encoder() -> None:
    spoken, encoder = clip(4), Numbering()

    asked = [spoken.packet("opus", frame, encoder.begin) for frame in (0, 1, 0, 1, 2, 3, 2)]

    assert asked == [b"\x00", b"\x01", b"\x00", b"\x01", b"\x02", b"\x03", b"\x02"]
    assert (encoder.n_begun, encoder.n_encoded) == (1, 4)


def test_each_form_has_packets_of_its_own() -> None:
    spoken, encoder = clip(1), Numbering()

    spoken.packet(("opus", 32_000), 0, encoder.begin)
    spoken.packet(("opus", 64_000), 0, encoder.begin)

    assert encoder.n_begun == 2
