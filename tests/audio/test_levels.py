import numpy as np
import pytest

from media_server.audio.chunk import Pcm, silence
from media_server.audio.levels import is_inaudible, level_dbfs


@pytest.mark.parametrize(
    ("pcm", "dbfs"),
    [
        pytest.param(silence(0), -96, id="nothing"),
        pytest.param(silence(480), -96, id="silence"),
        pytest.param(np.array([1, 0, 0, 0], dtype=np.int16), -96, id="less-than-one-step"),
        pytest.param(np.full(480, -32_768, dtype=np.int16), 0, id="the-loudest"),
        pytest.param(np.full(480, 16_384, dtype=np.int16), -6.02, id="half"),
        pytest.param(np.array([32_767, -32_767, 0, 0] * 99, dtype=np.int16), -3.01, id="half-the-time"),
    ],
)
def test_the_level_is_that_of_the_mean_square(pcm: Pcm, dbfs: float) -> None:
    assert level_dbfs(pcm) == pytest.approx(dbfs, abs=0.01)


@pytest.mark.parametrize(("sample", "silent"), [(0, True), (4, True), (-4, True), (5, False), (-5, False)])
def test_what_a_codec_rounds_is_silence(sample: int, silent: bool) -> None:
    pcm = silence(480)
    pcm[7] = sample

    assert is_inaudible(pcm) is silent
