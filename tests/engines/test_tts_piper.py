"""Piper speaks in a process of its own.

The worker and the way of the sound are tested with a package that stands in for piper-tts, which is not needed to run
the tests; where piper-tts and onnx are installed, the real one speaks with a voice made here.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from media_server.engines.protocols import Tts, Voice
from media_server.engines.tts_piper import PiperTts
from media_server.errors import EngineError, EngineMissingError

pytestmark = pytest.mark.models

RATE_HZ = 16_000
VOICE = Voice()

# 100 ms of sound a letter, at the scale asked for; the sample's value is the speaker.
STAND_IN = """
from types import SimpleNamespace
import numpy as np

class SynthesisConfig:
    def __init__(self, speaker_id=None, length_scale=None):
        self.speaker_id, self.length_scale = speaker_id, length_scale

class PiperVoice:
    config = SimpleNamespace(speaker_id_map={"anna": 7}, length_scale=2.0, sample_rate=16000)

    @staticmethod
    def load(model_path):
        if not open(model_path).read():
            raise ValueError("an empty file")
        return PiperVoice()

    def synthesize(self, text, syn_config=None):
        if "xyzzy" in text:
            raise ValueError("no such sound")
        manner = syn_config or SynthesisConfig(length_scale=1.0)
        for sentence in text.split("."):
            n_samples = round(len(sentence.strip()) * 1600 * manner.length_scale)
            if n_samples:
                pcm = np.full(n_samples, manner.speaker_id or 1, dtype=np.int16)
                yield SimpleNamespace(sample_rate=16000, audio_int16_array=pcm)
"""


def write_voice(folder: Path, content: bytes = b"a voice") -> Path:
    """Write what looks like a voice and return its path."""
    model = folder / "voice.onnx"
    model.write_bytes(content)
    (folder / "voice.onnx.json").write_text("{}")
    return model


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import piper` find the stand-in, here and in the worker."""
    package = tmp_path / "packages" / "piper"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@asynccontextmanager
async def running(tts: PiperTts) -> AsyncGenerator[PiperTts, None]:
    """Keep the workers alive and loaded."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tts.run())
        try:
            await tts.load()
            yield tts
        finally:
            await tts.close()


async def speak(tts: Tts, text: str, voice: Voice = VOICE) -> list[int]:
    """Return the lengths of the chunks, in samples."""
    async with aclosing(tts.speak(text, voice)) as chunks:
        return [len(chunk.pcm) async for chunk in chunks]


@pytest.mark.usefixtures("stand_in")
async def test_a_text_becomes_chunks_of_sound(tmp_path: Path) -> None:
    async with running(PiperTts(model=write_voice(tmp_path))) as tts:
        assert tts.rate_hz == RATE_HZ
        assert tts.state == "up"
        # 3 letters at the voice's own scale of 2: 600 ms in three pieces; then 1 letter: 200 ms.
        assert await speak(tts, "Yes. I.") == [3200, 3200, 3200, 3200]
        assert await speak(tts, "") == []


@pytest.mark.usefixtures("stand_in")
async def test_speed_and_speaker_reach_the_voice(tmp_path: Path) -> None:
    anna = Voice(name="anna", speed=4.0)

    async with running(PiperTts(model=write_voice(tmp_path))) as tts, aclosing(tts.speak("Yes", anna)) as chunks:
        (chunk,) = [each async for each in chunks]

    assert chunk.pcm.dtype == np.int16
    assert len(chunk.pcm) == 3 * 1600 // 2
    assert set(chunk.pcm.tolist()) == {7}


@pytest.mark.usefixtures("stand_in")
async def test_a_text_that_fails_costs_itself_only(tmp_path: Path) -> None:
    async with running(PiperTts(model=write_voice(tmp_path))) as tts:
        with pytest.raises(EngineError, match="no such sound"):
            await speak(tts, "xyzzy")

        assert await speak(tts, "a") == [3200]


@pytest.mark.usefixtures("stand_in")
async def test_a_speech_that_is_closed_early_leaves_the_worker_free(tmp_path: Path) -> None:
    async with running(PiperTts(model=write_voice(tmp_path))) as tts:
        async with aclosing(tts.speak("a long sentence. " * 20, VOICE)) as chunks:
            await anext(chunks)

        assert await speak(tts, "a") == [3200]


async def test_without_piper_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "piper", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    with pytest.raises(EngineMissingError, match=r"piper-tts is not installed: pip install piper-tts"):
        await PiperTts(model=write_voice(tmp_path)).load()


@pytest.mark.usefixtures("stand_in")
async def test_without_a_voice_the_setting_is_named() -> None:
    with pytest.raises(EngineMissingError, match=r"tts\.piper_model is empty"):
        await PiperTts(model="").load()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["voice.onnx", "voice.onnx.json"])
async def test_a_missing_file_of_the_voice_is_named(tmp_path: Path, name: str) -> None:
    model = write_voice(tmp_path)
    (tmp_path / name).unlink()

    with pytest.raises(EngineMissingError, match=rf"{name}: there is no such file.*tts\.piper_model"):
        await PiperTts(model=model).load()


@pytest.mark.usefixtures("stand_in")
async def test_a_voice_that_piper_cannot_load_is_named(tmp_path: Path) -> None:
    tts = PiperTts(model=write_voice(tmp_path, b""))
    workers = asyncio.create_task(tts.run())

    with pytest.raises(EngineMissingError, match=r"voice\.onnx: Piper cannot load this voice .*an empty file"):
        await tts.load()
    await tts.close()
    await workers


@pytest.mark.usefixtures("stand_in")
async def test_closing_twice_or_unloaded_is_fine(tmp_path: Path) -> None:
    tts = PiperTts(model=write_voice(tmp_path))

    await tts.close()
    await tts.close()


@pytest.mark.models
async def test_the_real_piper_speaks_with_a_voice_of_one_hum(tmp_path: Path) -> None:
    pytest.importorskip("piper", reason="piper-tts is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed, which makes the voice")
    tts = PiperTts(model=build_hum(tmp_path))

    async with running(tts):
        normal = await speak(tts, "abc")
        fast = await speak(tts, "abc", Voice(speed=2.0))

    # Start and end marks and the blanks between them count as sounds: ^ _ a _ b _ c _ $
    assert sum(normal) == 9 * 1000
    assert sum(fast) == 9 * 500


def build_hum(folder: Path) -> Path:
    """Write a voice in which every phoneme sounds as the same hum of 1,000 samples, times the length scale."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Slice", ["scales", "one", "two"], ["scale"]),
        helper.make_node("Mul", ["scale", "thousand"], ["long"]),
        helper.make_node("Cast", ["input_lengths"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["long", "count"], ["samples"]),
        helper.make_node("Cast", ["samples"], ["n_samples"], to=TensorProto.INT64),
        helper.make_node("Concat", ["ones", "n_samples"], ["shape"], axis=0),
        helper.make_node("Expand", ["half", "shape"], ["output"]),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("two", TensorProto.INT64, [1], [2]),
        helper.make_tensor("ones", TensorProto.INT64, [3], [1, 1, 1]),
        helper.make_tensor("thousand", TensorProto.FLOAT, [1], [1000.0]),
        helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5]),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, None]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, None])]
    graph = helper.make_graph(nodes, "hum", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "hum.onnx"
    onnx.save(model, str(path))
    ids = {phoneme: [index] for index, phoneme in enumerate("_^$abcdefghijklmnopqrstuvwxyzH .")}
    config = {
        "audio": {"sample_rate": RATE_HZ},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.667, "length_scale": 1.0, "noise_w": 0.8},
        "phoneme_type": "text",
        "num_symbols": len(ids),
        "num_speakers": 1,
        "phoneme_id_map": ids,
    }
    Path(f"{path}.json").write_text(json.dumps(config))
    return path
