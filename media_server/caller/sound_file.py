"""Sound files: any kind that FFmpeg reads comes in as mono 16-bit PCM; WAV goes out."""

import wave
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from media_server.audio.chunk import Pcm
from media_server.errors import BadRequestError

_MAX_S = 600
"""Nobody speaks longer in one turn; more would only fill the memory."""


def read_sound(path: Path, rate_hz: int) -> Pcm:
    """Return the sound of a file, mixed to mono: int16, shape (n,), at `rate_hz`.

    Raises:
        BadRequestError: there is no such file, it holds no sound, or more than ten minutes of it.
    """
    try:
        pcm = _decode(path, rate_hz)
    except FFmpegError as error:
        raise BadRequestError(f"{path}: cannot be read as sound: {error.strerror}") from error
    if len(pcm) == 0:
        raise BadRequestError(f"{path}: holds no sound")
    return pcm


def write_wav(path: Path, pcm: Pcm, rate_hz: int) -> None:
    """Write int16 `pcm`, shape (n,), as a mono WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm.astype("<i2").tobytes())


def _decode(path: Path, rate_hz: int) -> Pcm:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise BadRequestError(f"{path}: holds no sound")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)
        parts: list[Pcm] = []
        n_samples = 0
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                parts.append(piece.to_ndarray()[0])
                n_samples += len(parts[-1])
            if n_samples > _MAX_S * rate_hz:
                raise BadRequestError(f"{path}: is longer than {_MAX_S} s")
        # None flushes what the resampler holds back.
        parts.extend(piece.to_ndarray()[0] for piece in resampler.resample(None))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int16)
