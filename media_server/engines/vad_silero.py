"""Finds speech with Silero VAD, run by ONNX Runtime without torch, for all calls at once.

Two files hold the same network, and each wants its memory in a shape of its own:

    file                    comes with         inputs                                      outputs
    silero_vad.onnx         silero-vad         input [B, 576], state [2, B, 128], sr       output, stateN
    silero_vad_v6.onnx      faster-whisper     input [T, 576], h and c [1, 1, 128]         speech_probs, hn, cn

The 576 samples are the window of 512 behind the last 64 of the window before it. The first file takes windows of many
calls together; the second takes many windows of one call, and is rewritten when it is loaded, to do as the first does.

Windows that come within 4 ms go through the network together: alone a window takes 74 us, one of 32 takes 41. Where
there are few calls, nothing is gained and no window waits.
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
from media_server.errors import EngineError, EngineMissingError

WINDOW_SAMPLES = 512
"""What the network takes at 16 kHz: 32 ms."""

CONTEXT_SAMPLES = 64
"""How much of the window before stands in front of each window (snakers4/silero-vad utils_vad.py, OnnxWrapper)."""

FULL_SCALE = 32_768.0

GATHER_S = 0.004
"""How long a window waits for others; at 100 calls a dozen come in that time, and more gain little."""

FEW_CALLS = 4

MOST_AT_ONCE = 64
"""So many hold the loop for about 3 ms; 5 is the most that it may be held."""

# Importing silero_vad imports torch, so the packages are asked for their place only.
CARRIERS = (("silero_vad", "data/silero_vad.onnx"), ("faster_whisper", "assets/silero_vad_v6.onnx"))


class SileroVad:
    """The Silero VAD; one network for all calls, one memory for each.

    It runs on the event loop: handing a window to a thread costs more than the window.
    """

    name = "silero"
    window_samples = WINDOW_SAMPLES

    def __init__(self, *, model: Path | None = None) -> None:
        """`model`: one of the two files; None: the one that an installed package carries."""
        self.why = f"Silero VAD from {model or 'the package that carries it'}"
        self._model = model
        self._batcher: _Batcher | None = None

    async def load(self) -> None:
        """Load the network and run it once.

        Raises:
            EngineMissingError: there is no file, or it is not one of the two.
        """
        path = self._model or _find_model()
        self._batcher = _Batcher(await asyncio.to_thread(_load_network, path))
        self.why = f"Silero VAD from {path}"
        await self.open().probability(silence(WINDOW_SAMPLES))

    async def close(self) -> None:
        """Let the network go. Windows that wait are not answered: their calls have ended."""
        self._batcher = None

    def open(self) -> VadStream:
        """Return a fresh stream for one call.

        Raises:
            RuntimeError: `load` has not been called.
        """
        if self._batcher is None:
            raise RuntimeError("SileroVad.open() comes after load()")
        return _SileroStream(self._batcher)


@dataclass(frozen=True, slots=True)
class _Network:
    """A loaded file and what it wants beside the sound.

    Attributes:
        memory: names of the inputs that take back the outputs after the first, in that order.
        depth: of each of them: the first of the shape (depth, calls, 128); float32.
        constants: inputs that never change.
    """

    session: Any
    memory: tuple[str, ...]
    depth: int
    constants: dict[str, NDArray[np.int64]]


class _SileroStream:
    """The memory of one call: what the network keeps, and the end of the last window."""

    def __init__(self, batcher: "_Batcher") -> None:
        self._batcher = batcher
        self.input = np.zeros(CONTEXT_SAMPLES + WINDOW_SAMPLES, dtype=np.float32)
        self.memory = batcher.fresh_memory()

    async def probability(self, window: Pcm) -> float:
        """Return how likely the window holds speech, 0 to 1. `window`: int16, shape (512,), 16 kHz. One at a time.

        Cancellation leaves the stream in want of a window; it is for calls that end.
        """
        if window.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"Silero takes windows of shape ({WINDOW_SAMPLES},), got {window.shape}")
        self.input[:CONTEXT_SAMPLES] = self.input[WINDOW_SAMPLES:]
        np.divide(window, FULL_SCALE, out=self.input[CONTEXT_SAMPLES:], casting="same_kind")
        return await self._batcher.run(self)


class _Batcher:
    """Gathers the windows of all calls and runs them together."""

    def __init__(self, network: _Network) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[_SileroStream, asyncio.Future[float]]] = []
        self._counted_from_s = 0.0
        self._counted: set[_SileroStream] = set()
        self._few = True

    def fresh_memory(self) -> tuple[NDArray[np.float32], ...]:
        """Return the memory of a stream that has heard nothing: arrays of shape (depth, 1, 128)."""
        return tuple(np.zeros((self._network.depth, 1, 128), dtype=np.float32) for _ in self._network.memory)

    def run(self, stream: _SileroStream) -> asyncio.Future[float]:
        """Return the probability of a stream's window, once it has been run."""
        answer: asyncio.Future[float] = self._loop.create_future()
        self._waiting.append((stream, answer))
        self._count(stream)
        if self._few or len(self._waiting) == MOST_AT_ONCE:
            self._flush()
        elif len(self._waiting) == 1:
            self._loop.call_later(GATHER_S, self._flush)
        return answer

    def _count(self, stream: _SileroStream) -> None:
        """Find out how many calls there are: each live one has a window every 32 ms."""
        now_s = self._loop.time()
        if now_s - self._counted_from_s > WINDOW_SAMPLES / HEARING_HZ:
            self._few = len(self._counted) < FEW_CALLS
            self._counted_from_s = now_s
            self._counted.clear()
        self._counted.add(stream)
        self._few = self._few and len(self._counted) < FEW_CALLS

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        network = self._network
        streams = [stream for stream, _ in waiting]
        feed: dict[str, Any] = {"input": np.stack([stream.input for stream in streams]), **network.constants}
        for at, name in enumerate(network.memory):
            feed[name] = np.concatenate([stream.memory[at] for stream in streams], axis=1)
        try:
            probabilities, *memory = network.session.run(None, feed)
        except Exception as error:
            # ONNX Runtime's own errors have no common base; each call hears of it, and of nothing else.
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(EngineError(f"the VAD failed: {error}"))
            return
        for at, (stream, answer) in enumerate(waiting):
            stream.memory = tuple(array[:, at : at + 1] for array in memory)
            if not answer.done():
                answer.set_result(float(probabilities.flat[at]))


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
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise EngineMissingError("onnx is not installed: pip install onnx onnxruntime") from None
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise EngineMissingError(f"{path}: not a file that ONNX can read, wanted silero_vad.onnx") from error
    taken = {each.name for each in model.graph.input}
    if taken == {"input", "state", "sr"}:
        rate_hz = np.array(HEARING_HZ, dtype=np.int64)
        return _Network(_open_session(model, path), memory=("state",), depth=2, constants={"sr": rate_hz})
    if taken == {"input", "h", "c"}:
        _take_calls_for_time(model.graph)
        return _Network(_open_session(model, path), memory=("h", "c"), depth=1, constants={})
    raise EngineMissingError(f"{path}: takes {sorted(taken)}, wanted input, state, sr or input, h, c (Silero VAD)")


def _take_calls_for_time(graph: Any) -> None:
    """Let the first axis of the input be the calls, where the file meant the windows of one call.

    The LSTM behind the second transpose takes [time, calls, features]: the two transposes decide which is which.
    """
    permutations = {"/Transpose": [2, 0, 1], "/decoder/Transpose": [0, 2, 1]}
    for node in graph.node:
        if node.name in permutations:
            node.attribute[0].ints[:] = permutations[node.name]
    for value in (*graph.input, *graph.output):
        if value.name in ("h", "c", "hn", "cn"):
            calls = value.type.tensor_type.shape.dim[1]
            calls.ClearField("dim_value")
            calls.dim_param = "calls"
    del graph.value_info[:]


def _open_session(model: Any, path: Path) -> Any:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise EngineMissingError(f"{path}: not a network that ONNX Runtime can run, wanted silero_vad.onnx") from error
