"""Loads the network of Silero VAD, and shapes it for windows of many calls together.

Two files hold the same network, and each wants its memory in a shape of its own:

    file                    comes with         inputs                                      outputs
    silero_vad.onnx         silero-vad         input [B, 576], state [2, B, 128], sr       output, stateN
    silero_vad_v6.onnx      faster-whisper     input [T, 576], h and c [1, 1, 128]         speech_probs, hn, cn

The first takes windows of many calls as it is. The second takes many windows of one call, and is rewritten: to take
calls instead, and to multiply where it convolves. ONNX Runtime convolves window by window, four columns at a time, and
leaves most of a core idle at that: eight windows take it 446 us, and 157 as products of matrices.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import HEARING_HZ
from media_server.errors import EngineMissingError

# Importing silero_vad imports torch, so the packages are asked for their place only.
CARRIERS = (("silero_vad", "data/silero_vad.onnx"), ("faster_whisper", "assets/silero_vad_v6.onnx"))

_HOP = 128  # samples from one frame of the spectrum to the next; a frame has two hops
_FRAMES = 4  # of a window: those that begin in it


@dataclass(frozen=True, slots=True)
class Network:
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


def find_model() -> Path:
    """Return the first file that an installed package carries.

    Raises:
        EngineMissingError: none does.
    """
    for package, inside in CARRIERS:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, inside)
            if path.is_file():
                return path
    raise EngineMissingError(
        "no Silero VAD file found: pip install faster-whisper (it carries one), or give the path of silero_vad.onnx"
    )


def load_network(path: Path) -> Network:
    """Load a file and find out which of the two it is.

    Raises:
        EngineMissingError: it is not there, or neither of the two.
    """
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
        return Network(_open_session(model, path), memory=("state",), depth=2, constants={"sr": rate_hz})
    if taken == {"input", "h", "c"}:
        _take_calls_for_time(model.graph, path)
        _multiply(model.graph)
        return Network(_open_session(model, path), memory=("h", "c"), depth=1, constants={})
    raise EngineMissingError(f"{path}: takes {sorted(taken)}, wanted input, state, sr or input, h, c (Silero VAD)")


def _take_calls_for_time(graph: Any, path: Path) -> None:
    """Let the first axis of the input be the calls, where the file meant the windows of one call.

    The LSTM behind the second transpose takes [time, calls, features]: the two transposes decide which is which.
    """
    permutations = {"/Transpose": [2, 0, 1], "/decoder/Transpose": [0, 2, 1]}
    nodes = {node.name: node for node in graph.node}
    for name, permutation in permutations.items():
        if name not in nodes:
            raise EngineMissingError(f"{path}: {name} is not in it, wanted silero_vad.onnx or silero_vad_v6.onnx")
        nodes[name].attribute[0].ints[:] = permutation
    for value in (*graph.input, *graph.output):
        if value.name in ("h", "c", "hn", "cn"):
            calls = value.type.tensor_type.shape.dim[1]
            calls.ClearField("dim_value")
            calls.dim_param = "calls"
    del graph.value_info[:]


def _multiply(graph: Any) -> None:
    """Put products of matrices in the place of the convolutions over frames; another graph is left as it is."""
    weights = {each.name: each for each in graph.initializer}
    front = {node.name: node for node in graph.node if node.name.startswith("/encoder/feature_extractor/")}
    names = [f"/encoder/feature_extractor/{name}" for name in ("padding/Pad", "Unsqueeze", "Conv")]
    if not front.keys() >= set(names):
        return
    padding, unsqueeze, transform = (front[name] for name in names)
    halves = [node for node in graph.node if transform.output[0] in node.input]
    if [half.op_type for half in halves] != ["Slice", "Slice"]:
        return
    replaced = {node.output[0] for node in (padding, unsqueeze, transform, *halves)}
    rewriting = _Rewriting(graph)
    rewriting.spectrum(weights[transform.input[1]], [half.output[0] for half in halves])
    n_frames = _FRAMES
    for node in graph.node:
        if node.output[0] in replaced:
            continue
        if node.op_type == "Conv" and node.name.startswith("/encoder/conv_layers."):
            n_frames = rewriting.convolution(node, weights[node.input[1]], n_frames)
        else:
            rewriting.nodes.append(node)
    used = {name for node in rewriting.nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rewriting.nodes)
    graph.initializer.extend(kept)


class _Rewriting:
    """New nodes of a graph, in order. Between them the frames of a window lie in the second axis: [B, frames, n]."""

    def __init__(self, graph: Any) -> None:
        self.nodes: list[Any] = []
        self._graph = graph

    def spectrum(self, basis: Any, outputs: list[str]) -> None:
        """Take the frames of the input, two hops each, times each half of the basis [2 n, 1, 256]: [B, n, frames]."""
        from onnx import numpy_helper

        padded = self._node("Pad", "input", np.array([0, 0, 0, _HOP // 2]), mode="reflect")
        hops = self._node("Reshape", padded, np.array([-1, _FRAMES + 1, _HOP]))
        pairs = np.array([[frame, frame + 1] for frame in range(_FRAMES)]).ravel()
        frames = self._node("Gather", hops, pairs, axis=1)
        frames = self._node("Reshape", frames, np.array([-1, _FRAMES, 2 * _HOP]))
        for half, output in zip(np.split(numpy_helper.to_array(basis)[:, 0], 2), outputs, strict=True):
            product = self._node("MatMul", frames, half.T)
            self._node("Transpose", product, output=output, perm=[0, 2, 1])

    def convolution(self, node: Any, kernel: Any, n_frames: int) -> int:
        """Rewrite one over three frames, padded by one on both sides; return how many frames come out."""
        from onnx import numpy_helper

        array = numpy_helper.to_array(kernel)
        n_out, n_in, width = array.shape
        (stride,) = next(attribute.ints for attribute in node.attribute if attribute.name == "strides")
        begins = range(0, n_frames + 2 - width + 1, stride)
        taken = np.array([begin + at for begin in begins for at in range(width)])
        frames = self._node("Transpose", node.input[0], perm=[0, 2, 1])
        frames = self._node("Pad", frames, np.array([0, 1, 0, 0, 1, 0]))
        frames = self._node("Gather", frames, taken, axis=1)
        frames = self._node("Reshape", frames, np.array([-1, len(begins), width * n_in]))
        product = self._node("MatMul", frames, array.transpose(2, 1, 0).reshape(width * n_in, n_out))
        product = self._node("Add", product, node.input[2])
        self._node("Transpose", product, output=node.output[0], perm=[0, 2, 1])
        return len(begins)

    def _node(self, kind: str, *inputs: str | NDArray[Any], output: str = "", **attributes: Any) -> str:
        from onnx import helper, numpy_helper

        name = f"parley/{len(self.nodes)}"
        names = []
        for each in inputs:
            if isinstance(each, str):
                names.append(each)
            else:
                names.append(f"{name}/constant")
                self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(each), names[-1]))
        self.nodes.append(helper.make_node(kind, names, [output or name], name=name, **attributes))
        return output or name


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
