"""Finds speech with Silero VAD, run by ONNX Runtime without torch, for all calls at once.

A window is 512 samples behind the last 64 of the window before it. Windows that come within 8 ms go through the network
together: alone a window takes 53 us, one of six takes 20. Where there are few calls, nothing is gained and no window
waits; nor does that of a call that has more sound waiting.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from media_server.audio.chunk import HEARING_HZ, Pcm, silence
from media_server.engines.protocols import VadStream
from media_server.engines.vad_silero_network import Network, find_model, load_network
from media_server.errors import EngineError

WINDOW_SAMPLES = 512
"""What the network takes at 16 kHz: 32 ms."""

CONTEXT_SAMPLES = 64
"""How much of the window before stands in front of each window (snakers4/silero-vad utils_vad.py, OnnxWrapper)."""

FULL_SCALE = 32_768.0

GATHER_S = 0.008
"""How long a window waits for others. Each run reads the 2 MB of the network from memory, however many windows it has;
at 100 calls two dozen share that."""

BEHIND_S = 0.01
"""Who has the next window so soon after the last one has more of them waiting: sound as it is spoken has one in 32 ms.
Where the path of a few calls had held them up, they wait for nobody, lest what comes overtakes them. Where all are
behind, it was we who stood still."""

FEW_CALLS = 4

MOST_AT_ONCE = 64
"""So many hold the loop for about 1 ms; 5 is the most that it may be held, and other work comes on top."""


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
        path = self._model or find_model()
        self._batcher = _Batcher(await asyncio.to_thread(load_network, path))
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


class _SileroStream:
    """The memory of one call: what the network keeps, and the end of the last window."""

    def __init__(self, batcher: "_Batcher") -> None:
        self._batcher = batcher
        self.context = silence(CONTEXT_SAMPLES)
        self.memory = batcher.fresh_memory()
        self.asked_s = 0.0

    def probability(self, window: Pcm) -> asyncio.Future[float]:
        """Return how likely the window holds speech, 0 to 1. `window`: int16, shape (512,), 16 kHz. One at a time.

        Cancellation leaves the stream in want of a window; it is for calls that end.
        """
        if window.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"Silero takes windows of shape ({WINDOW_SAMPLES},), got {window.shape}")
        return self._batcher.run(self, window)


class _Batcher:
    """Gathers the windows of all calls and runs them together."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._windows = np.zeros((MOST_AT_ONCE, CONTEXT_SAMPLES + WINDOW_SAMPLES), dtype=np.int16)
        self._waiting: list[tuple[_SileroStream, asyncio.Future[float]]] = []
        self._counted_from_s = 0.0
        self._counted: set[_SileroStream] = set()
        self._behind: set[_SileroStream] = set()
        self._few = True

    def fresh_memory(self) -> tuple[NDArray[np.float32], ...]:
        """Return the memory of a stream that has heard nothing: arrays of shape (depth, 1, 128)."""
        return tuple(np.zeros((self._network.depth, 1, 128), dtype=np.float32) for _ in self._network.memory)

    def run(self, stream: _SileroStream, window: Pcm) -> asyncio.Future[float]:
        """Return the probability of a stream's window, once it has been run. The window may be changed at once."""
        answer: asyncio.Future[float] = self._loop.create_future()
        row = self._windows[len(self._waiting)]
        row[:CONTEXT_SAMPLES] = stream.context
        row[CONTEXT_SAMPLES:] = window
        stream.context = window[-CONTEXT_SAMPLES:].copy()
        self._waiting.append((stream, answer))
        if self._hurries(stream) or len(self._waiting) == MOST_AT_ONCE:
            self._flush()
        elif len(self._waiting) == 1:
            self._loop.call_later(GATHER_S, self._flush)
        return answer

    def _hurries(self, stream: _SileroStream) -> bool:
        """Return whether a stream's window waits for no others; count the streams, each has a window every 32 ms."""
        now_s = self._loop.time()
        if now_s - self._counted_from_s > WINDOW_SAMPLES / HEARING_HZ:
            self._few = len(self._counted) < FEW_CALLS
            self._counted_from_s = now_s
            self._counted.clear()
            self._behind.clear()
        self._counted.add(stream)
        self._few = self._few and len(self._counted) < FEW_CALLS
        behind = now_s - stream.asked_s < BEHIND_S
        stream.asked_s = now_s
        if behind:
            self._behind.add(stream)
        return self._few or (behind and len(self._behind) < FEW_CALLS)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        network = self._network
        sound = np.multiply(self._windows[: len(waiting)], 1 / FULL_SCALE, dtype=np.float32)
        feed: dict[str, Any] = {"input": sound, **network.constants}
        for at, name in enumerate(network.memory):
            feed[name] = np.concatenate([stream.memory[at] for stream, _ in waiting], axis=1)
        try:
            probabilities, *memory = network.session.run(None, feed)
        except Exception as error:
            # ONNX Runtime's own errors have no common base; each call hears of it, and of nothing else.
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(EngineError(f"the VAD failed: {error}"))
            return
        for at, ((stream, answer), probability) in enumerate(zip(waiting, probabilities.ravel().tolist(), strict=True)):
            stream.memory = tuple([array[:, at : at + 1] for array in memory])
            if not answer.done():
                answer.set_result(probability)
