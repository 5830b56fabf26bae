"""Speaks with Piper: neural voices that run faster than time on a CPU.

piper-tts is GPL-3 and keeps espeak-ng's global state, so it runs in worker processes of its own: nothing of it is
imported here. `PiperModel` is the inside of such a process.

A voice is two files, `NAME.onnx` and `NAME.onnx.json`, from https://huggingface.co/rhasspy/piper-voices.
"""

import asyncio
from collections.abc import AsyncGenerator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from media_server.engines.protocols import SpeechChunk, Voice
from media_server.engines.workers.child import ModelStream, Send
from media_server.engines.workers.pool import PooledEngine
from media_server.errors import EngineMissingError

NOT_INSTALLED = "piper-tts is not installed: pip install piper-tts"
PIECE_MS = 200
"""Piper makes a sentence at once; it is handed on in pieces, so that a cut is felt between two of them."""

STREAMS_MAX = 16


class PiperTts(PooledEngine):
    """One Piper voice.

    `Voice.name` picks a speaker of a voice that has several; any other name is the voice's first. Piper tells no word
    times. A sentence that is being made is made to its end: closed meanwhile, it still holds its worker for so long.
    """

    name = "piper"

    def __init__(self, *, model: str | Path, workers: int = 1) -> None:
        """Describe the voice; nothing is read before `load`. `model`: the path of its .onnx file."""
        self.rate_hz = 22_050
        self.why = f"Piper with {Path(model).stem or 'no voice'}"
        self._model = Path(model).expanduser() if str(model) else None
        factory = "media_server.engines.tts_piper:PiperModel"
        options = {"model": str(self._model or "")}
        super().__init__(factory, options, count=workers, streams_max=STREAMS_MAX)

    async def load(self) -> None:
        """Wait until the workers are warm, and learn the voice's rate; `run` must be running.

        Raises:
            EngineMissingError: piper-tts or a file of the voice is not there.
        """
        if find_spec("piper") is None:
            raise EngineMissingError(NOT_INSTALLED)
        await asyncio.to_thread(_check_files, self._model)
        await self._pool.load()
        self.rate_hz = int(self._pool.about["rate_hz"])

    async def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        """Yield the speech of `text`, sentence by sentence."""
        request = {"text": text, "speaker": voice.name, "speed": voice.speed}
        async with self._pool.open(request) as stream:
            stream.end()
            while (reply := await stream.get()) is not None:
                yield SpeechChunk(np.frombuffer(reply.body, dtype=np.int16))


class PiperModel:
    """The inside of a worker: the loaded voice."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Load the voice and let it speak once.

        Raises:
            EngineMissingError: piper-tts is not there, or the voice's files are something else.
        """
        try:
            from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf
            from piper import PiperVoice, SynthesisConfig
        except ImportError:
            raise EngineMissingError(NOT_INSTALLED) from None
        try:
            self._voice = PiperVoice.load(options["model"])
        except (OSError, ValueError, KeyError, Fail, InvalidGraph, InvalidProtobuf) as error:
            message = f"{options['model']}: Piper cannot load this voice (tts.piper_model): {str(error)[:200]}"
            raise EngineMissingError(message) from error
        self.about: dict[str, Any] = {"rate_hz": self._voice.config.sample_rate}
        self._manner = SynthesisConfig
        for _ in self._voice.synthesize("Hello."):
            pass

    def open(self, request: dict[str, Any]) -> ModelStream:
        """Begin to speak a text."""
        config = self._voice.config
        speaker = (config.speaker_id_map or {}).get(request["speaker"])
        # Piper's scale is of the length, ours of the speed.
        manner = self._manner(speaker_id=speaker, length_scale=(config.length_scale or 1.0) / request["speed"])
        return _Speech(self._voice, request["text"], manner)

    def tidy(self) -> None:
        """Keep all: the voice is always needed."""


class _Speech:
    """One text on its way to sound."""

    def __init__(self, voice: Any, text: str, manner: Any) -> None:
        self._voice = voice
        self._text = text
        self._manner = manner

    def feed(self, body: bytes, send: Send) -> None:
        """Refuse input: the request holds the text."""
        raise ValueError(f"a speech takes no input after its text, got {len(body)} bytes")

    def finish(self, send: Send) -> None:
        """Speak, until all is said or nobody listens any more."""
        for sentence in self._voice.synthesize(self._text, self._manner):
            pcm = sentence.audio_int16_array
            piece = sentence.sample_rate * PIECE_MS // 1000
            for start in range(0, len(pcm), piece):
                if not send({}, pcm[start : start + piece].tobytes()):
                    return

    def close(self) -> None:
        """Do nothing: a speech holds nothing."""


def _check_files(model: Path | None) -> None:
    """Raise EngineMissingError if a file of the voice is not there: no worker need start to find that out."""
    if model is None:
        raise EngineMissingError("tts.piper_model is empty, wanted the path of a Piper voice (.onnx)")
    for path in (model, model.with_name(f"{model.name}.json")):
        if not path.is_file():
            raise EngineMissingError(f"{path}: there is no such file, wanted a Piper voice (tts.piper_model)")
