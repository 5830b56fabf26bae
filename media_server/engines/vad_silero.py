"""Finds speech with Silero VAD, run by ONNX Runtime without torch.

Two files hold the same network, and each wants its memory in a shape of its own:

    file                    comes with         inputs                                      outputs
    silero_vad.onnx         silero-vad         input [B, 576], state [2, B, 128], sr       output, stateN
    silero_vad_v6.onnx      faster-whisper     input [T, 576], h and c [1, 1, 128]         speech_probs, hn, cn

The 576 samples are the window of 512 behind the last 64 of the window before it.
"""

import asyncio
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import HEARING_HZ, Pcm, silence
from media_server.engines.protocols import VadStream
from media_server.errors import EngineMissingError

WINDOW_SAMPLES = 512
"""What the network takes at 16 kHz: 32 ms."""

CONTEXT_SAMPLES = 64
"""How much of the window before stands in front of each window (snakers4/silero-vad utils_vad.py, OnnxWrapper)."""

FULL_SCALE = 32_768.0

# Importing silero_vad imports torch, so the packages are asked for their place only.
CARRIERS = (("silero_vad", "data/silero_vad.onnx"), ("faster_whisper", "assets/silero_vad_v6.onnx"))


class SileroVad:
    """The Silero VAD; one network for all calls, one memory for each.

    A window takes about 0.08 ms on one thread, so it runs on the event loop: handing it to a thread costs more.
    """

    name = "silero"
    window_samples = WINDOW_SAMPLES

    def __init__(self, *, model: Path | None = None) -> None:
        """`model`: one of the two files; None: the one that an installed package carries."""
        self.why = f"Silero VAD from {model or 'the package that carries it'}"
        self._model = model
        self._network: _Network | None = None

    async def load(self) -> None:
        """Load the network and run it once.

        Raises:
            EngineMissingError: there is no file, or it is not one of the two.
        """
        path = self._model or _find_model()
        self._network = await asyncio.to_thread(_load_network, path)
        self.why = f"Silero VAD from {path}"
        await self.open().probability(silence(WINDOW_SAMPLES))

    async def close(self) -> None:
        """Let the network go."""
        self._network = None

    def open(self) -> VadStream:
        """Return a fresh stream for one call.

        Raises:
            RuntimeError: `load` has not been called.
        """
        if self._network is None:
            raise RuntimeError("SileroVad.open() comes after load()")
        return _SileroStream(self._network)


@dataclass(frozen=True, slots=True)
class _Network:
    """A loaded file and what it wants beside the sound.

    Attributes:
        memory: names of the inputs that take back the outputs after the first, in that order.
        memory_shape: of each of them; float32.
        constants: inputs that never change.
    """

    session: Any
    memory: tuple[str, ...]
    memory_shape: tuple[int, int, int]
    constants: dict[str, NDArray[np.int64]]


class _SileroStream:
    """The memory of one call: what the network keeps, and the end of the last window."""

    def __init__(self, network: _Network) -> None:
        self._session = network.session
        self._memory = network.memory
        self._input = np.zeros((1, CONTEXT_SAMPLES + WINDOW_SAMPLES), dtype=np.float32)
        self._feed: dict[str, Any] = {"input": self._input, **network.constants}
        for name in network.memory:
            self._feed[name] = np.zeros(network.memory_shape, dtype=np.float32)

    async def probability(self, window: Pcm) -> float:
        """Return how likely the window holds speech, 0 to 1. `window`: int16, shape (512,), 16 kHz."""
        if window.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"Silero takes windows of shape ({WINDOW_SAMPLES},), got {window.shape}")
        self._input[0, :CONTEXT_SAMPLES] = self._input[0, WINDOW_SAMPLES:]
        np.divide(window, FULL_SCALE, out=self._input[0, CONTEXT_SAMPLES:], casting="same_kind")
        probability, *memory = self._session.run(None, self._feed)
        self._feed.update(zip(self._memory, memory, strict=True))
        return float(probability.flat[0])


def _find_model() -> Path:
    """Return the first file that an installed package carries."""
    for package, inside in CARRIERS:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, inside)
            if path.is_file():
                return path
    raise EngineMissingError(
        "no Silero VAD file found: pip install faster-whisper (it carries one), or give the path of silero_vad.onnx"
    )


def _load_network(path: Path) -> _Network:
    """Load a file and find out which of the two it is."""
    if not path.is_file():
        raise EngineMissingError(f"{path}: there is no such file, wanted silero_vad.onnx")
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf
    except ImportError:
        raise EngineMissingError("onnxruntime is not installed: pip install onnxruntime") from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise EngineMissingError(f"{path}: not a file that ONNX Runtime can read, wanted silero_vad.onnx") from error
    return _describe(session, path)


def _describe(session: Any, path: Path) -> _Network:
    found = {each.name for each in session.get_inputs()}
    if found == {"input", "state", "sr"}:
        rate_hz = np.array(HEARING_HZ, dtype=np.int64)
        return _Network(session, memory=("state",), memory_shape=(2, 1, 128), constants={"sr": rate_hz})
    if found == {"input", "h", "c"}:
        return _Network(session, memory=("h", "c"), memory_shape=(1, 1, 128), constants={})
    raise EngineMissingError(f"{path}: takes {sorted(found)}, wanted input, state, sr or input, h, c (Silero VAD)")
