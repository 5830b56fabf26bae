"""Silero VAD hears real speech where it is, and nothing else."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import faster_whisper
import numpy as np
import onnx
import pytest
from faster_whisper.vad import get_vad_model

from media_server.audio.chunk import HEARING_HZ, Pcm, silence
from media_server.engines.protocols import Vad, VadStream
from media_server.engines.vad_silero import WINDOW_SAMPLES, SileroVad
from media_server.engines.vad_silero_network import CARRIERS
from media_server.errors import EngineMissingError

pytestmark = pytest.mark.models

SPEECH = Path(os.environ.get("PARLEY_SPEECH", Path(__file__).parents[3] / "shared" / "speech"))
WINDOW_S = WINDOW_SAMPLES / HEARING_HZ

needs_speech = pytest.mark.skipif(
    not (SPEECH / "manifest.jsonl").is_file(), reason=f"no recorded speech in {SPEECH} (set PARLEY_SPEECH)"
)


@pytest.fixture(params=CARRIERS, ids=[package for package, _ in CARRIERS])
async def vad(request: pytest.FixtureRequest) -> Vad:
    package, inside = request.param
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    engine: Vad = SileroVad(model=Path(spec.submodule_search_locations[0], inside))
    await engine.load()
    return engine


async def listen(stream: VadStream, pcm: Pcm) -> list[float]:
    """Return the probability of every whole window."""
    starts = range(0, len(pcm) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES)
    return [await stream.probability(pcm[start : start + WINDOW_SAMPLES]) for start in starts]


def read_clip(name: str) -> Pcm:
    """Return a 16 kHz mono clip, int16, shape (n,)."""
    with av.open(str(SPEECH / name)) as container:
        frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.int16)


def clips(*sets: str) -> list[dict[str, Any]]:
    """Return the manifest's 16 kHz clips of these sets."""
    lines = (SPEECH / "manifest.jsonl").read_text().splitlines()
    return [clip for line in lines if (clip := json.loads(line))["set"] in sets and clip["sample_rate"] == HEARING_HZ]


def noise(seconds: float, amplitude: float) -> Pcm:
    """Return white noise, the same every time."""
    random = np.random.default_rng(7)
    return (random.standard_normal(int(seconds * HEARING_HZ)) * amplitude).astype(np.int16)


def tone(seconds: float, hz: float, amplitude: float) -> Pcm:
    """Return a sine."""
    at_s = np.arange(int(seconds * HEARING_HZ)) / HEARING_HZ
    return (np.sin(2 * np.pi * hz * at_s) * amplitude).astype(np.int16)


VOWELS_HZ = np.array([(700, 1200, 2500), (300, 2300, 3000), (400, 800, 2600), (500, 1800, 2500)])


def voice(n_windows: int, pitch_hz: float) -> Pcm:
    """Return vowels with pauses, which Silero takes for speech more or less surely: 0.01 to 0.98 at most pitches."""
    at_s = np.arange(n_windows * WINDOW_SAMPLES) / HEARING_HZ
    formants_hz = VOWELS_HZ[(at_s * 5).astype(int) % len(VOWELS_HZ)].T
    turns = np.cumsum(pitch_hz * (1 + 0.15 * np.sin(2 * np.pi * 1.3 * at_s + pitch_hz))) / HEARING_HZ
    sound = np.zeros(len(at_s))
    for n in range(1, int(4_000 / pitch_hz)):
        strength = (1 / (1 + ((n * pitch_hz - formants_hz) / 120) ** 2)).sum(axis=0)
        sound += strength * np.sin(2 * np.pi * n * turns)
    sound *= np.clip(np.sin(2 * np.pi * 4 * at_s), 0, 1) * (at_s % 1.2 < 0.8)
    pcm: Pcm = (sound / np.abs(sound).max() * 9_000).astype(np.int16)
    return pcm + noise(len(at_s) / HEARING_HZ, 20)


def many_sounds(n: int, n_windows: int) -> list[Pcm]:
    """Return different sounds of one length: voices, hum with pauses, and noise, in turn."""
    size = n_windows * WINDOW_SAMPLES
    seconds = size / HEARING_HZ
    pauses = np.arange(size) // (3 * WINDOW_SAMPLES) % 2
    kinds: list[Callable[[int], Pcm]] = [
        lambda at: voice(n_windows, 80 + 2 * at),
        lambda at: (tone(seconds, 50 + at, 8_000) * pauses).astype(np.int16),
        lambda at: noise(seconds, 100 * (at + 1)),
    ]
    return [kinds[at % len(kinds)](at) for at in range(n)]


class CountedSession:
    """A network's session that tells how many windows went through it together."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.runs: list[int] = []

    def run(self, outputs: None, feed: dict[str, Any]) -> Any:
        """Run them."""
        self.runs.append(len(feed["input"]))
        return self._session.run(outputs, feed)


def as_spoken(stream: Any) -> None:
    """Let the last window have been a while ago."""
    stream.asked_s = 0.0


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(silence(HEARING_HZ), id="digital silence"),
        pytest.param(noise(2.0, 100), id="faint noise"),
        pytest.param(noise(2.0, 3000), id="loud noise"),
        pytest.param(tone(2.0, 440, 8000), id="a tone"),
        pytest.param(tone(2.0, 50, 8000), id="mains hum"),
    ],
)
async def test_what_is_not_speech_stays_quiet(vad: Vad, sound: Pcm) -> None:
    probabilities = await listen(vad.open(), sound)

    assert max(probabilities) < 0.5


@needs_speech
async def test_speech_starts_and_ends_where_the_reference_says(vad: Vad) -> None:
    off_s = []
    for clip in clips("commands", "ljspeech")[:12]:
        probabilities = np.array(await listen(vad.open(), read_clip(clip["file"])))
        heard = np.flatnonzero(probabilities >= 0.5) * WINDOW_S
        first, last = clip["silero_v6_segments"][0][0], clip["silero_v6_segments"][-1][1]
        off_s += [abs(heard[0] - first), abs(heard[-1] + WINDOW_S - last)]

    assert np.median(off_s) < 0.07
    assert max(off_s) < 0.3


@needs_speech
async def test_window_by_window_is_the_same_as_all_at_once() -> None:
    vad = SileroVad(model=Path(faster_whisper.__path__[0], "assets", "silero_vad_v6.onnx"))
    await vad.load()
    pcm = read_clip(clips("ljspeech")[0]["file"])[: 60 * WINDOW_SAMPLES]

    ours = await listen(vad.open(), pcm)
    reference = get_vad_model()(pcm.astype(np.float32) / 32_768)

    # faster-whisper blanks the end of the last window.
    assert ours[:-1] == pytest.approx(reference.ravel()[:-1].tolist(), abs=1e-5)


async def test_window_by_window_a_made_voice_is_the_same_as_all_at_once() -> None:
    vad = SileroVad(model=Path(faster_whisper.__path__[0], "assets", "silero_vad_v6.onnx"))
    await vad.load()
    pcm = voice(60, 160)

    ours = await listen(vad.open(), pcm)
    reference = get_vad_model()(pcm.astype(np.float32) / 32_768)

    assert ours[:-1] == pytest.approx(reference.ravel()[:-1].tolist(), abs=1e-5)  # see above
    assert min(ours) < 0.1
    assert max(ours) > 0.9


@needs_speech
async def test_room_noise_is_not_speech(vad: Vad) -> None:
    for name in ("negatives/room_tone_pv_empty.flac", "negatives/synthetic_pink_-30dBFS.flac"):
        probabilities = await listen(vad.open(), read_clip(name))

        assert np.mean(np.array(probabilities) >= 0.5) < 0.02


@needs_speech
async def test_two_calls_at_a_time_hear_what_each_would_hear_alone(vad: Vad) -> None:
    one, other = (read_clip(clip["file"])[:HEARING_HZ] for clip in clips("ljspeech")[:2])
    alone = [await listen(vad.open(), one), await listen(vad.open(), other)]
    streams = [vad.open(), vad.open()]
    together: list[list[float]] = [[], []]
    for start in range(0, len(one) - WINDOW_SAMPLES + 1, WINDOW_SAMPLES):
        for stream, pcm, heard in zip(streams, (one, other), together, strict=True):
            heard.append(await stream.probability(pcm[start : start + WINDOW_SAMPLES]))

    assert together == alone
    assert alone[0] != alone[1]


@needs_speech
async def test_windows_of_many_calls_that_come_together_give_what_each_gives_alone(vad: Vad) -> None:
    sounds = [read_clip(clip["file"])[: 40 * WINDOW_SAMPLES] for clip in clips("ljspeech", "commands")[:20]]
    sounds = [np.pad(pcm, (0, 40 * WINDOW_SAMPLES - len(pcm))) for pcm in sounds]

    alone = [await listen(vad.open(), pcm) for pcm in sounds]
    together = await asyncio.gather(*(listen(vad.open(), pcm) for pcm in sounds))

    assert together == alone


@pytest.mark.parametrize("n_calls", [2, 70])
async def test_sounds_of_many_calls_that_come_together_give_what_each_gives_alone(vad: Vad, n_calls: int) -> None:
    sounds = many_sounds(n_calls, 12)

    alone = [await listen(vad.open(), pcm) for pcm in sounds]
    together = await asyncio.gather(*(listen(vad.open(), pcm) for pcm in sounds))

    assert together == alone
    assert len({tuple(heard) for heard in alone}) == n_calls


@pytest.mark.parametrize(("n_calls", "runs"), [(64, [64]), (70, [64, 6])])
async def test_of_windows_that_come_together_64_go_through_the_network_at_once(n_calls: int, runs: list[int]) -> None:
    vad = SileroVad()
    await vad.load()
    batcher: Any = vad._batcher
    session = CountedSession(batcher._network.session)
    batcher._network = replace(batcher._network, session=session)
    streams = [vad.open() for _ in range(n_calls)]
    window = noise(0.032, 2_000)

    first = await asyncio.gather(*(stream.probability(window) for stream in streams))
    for stream in streams:
        as_spoken(stream)
    session.runs.clear()  # from the second on it is known that the calls are many
    second = await asyncio.gather(*(stream.probability(window) for stream in streams))

    assert session.runs == runs
    assert (len(set(first)), len(set(second))) == (1, 1)


async def test_a_call_with_more_sound_waiting_does_not_wait_for_the_windows_of_others() -> None:
    vad = SileroVad()
    await vad.load()
    batcher: Any = vad._batcher
    session = CountedSession(batcher._network.session)
    batcher._network = replace(batcher._network, session=session)
    streams = [vad.open() for _ in range(5)]
    window = noise(0.032, 2_000)
    await asyncio.gather(*(stream.probability(window) for stream in streams))  # it is known that the calls are many
    late = streams[0]
    await late.probability(window)
    session.runs.clear()

    answers = [asyncio.ensure_future(late.probability(window)) for _ in range(60)]

    assert all(answer.done() for answer in answers)
    assert session.runs == [1] * 60


async def test_a_call_that_ends_while_its_window_waits_takes_no_other_with_it(vad: Vad) -> None:
    windows = [noise(0.032, 2000)] * 20
    streams = [vad.open() for _ in windows]
    tasks = [asyncio.ensure_future(stream.probability(pcm)) for stream, pcm in zip(streams, windows, strict=True)]
    await asyncio.sleep(0)

    tasks[-1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(answers[-1], asyncio.CancelledError)
    assert all(isinstance(answer, float) for answer in answers[:-1])


async def test_a_stream_remembers_what_it_heard_before(vad: Vad) -> None:
    stream = vad.open()
    window = noise(0.032, 2000)

    first, second = await stream.probability(window), await stream.probability(window)

    assert first != second


async def test_a_window_of_another_length_is_refused(vad: Vad) -> None:
    with pytest.raises(ValueError, match=r"windows of shape \(512,\), got \(480,\)"):
        await vad.open().probability(silence(480))


async def test_a_file_is_found_without_importing_its_package() -> None:
    vad = SileroVad()

    await vad.load()

    assert "silero_vad" in vad.why
    assert "torch" not in sys.modules


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match="there is no such file"):
        await SileroVad(model=tmp_path / "silero_vad.onnx").load()


async def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "silero_vad.onnx"
    path.write_bytes(b"not a network")

    with pytest.raises(EngineMissingError, match="not a file that ONNX can read"):
        await SileroVad(model=path).load()


def with_a_node_renamed(name: str, path: Path) -> Path:
    """Return the path of a network that is that of faster-whisper but for the name of a node."""
    model = onnx.load(Path(faster_whisper.__path__[0], "assets", "silero_vad_v6.onnx"))
    (node,) = [node for node in model.graph.node if node.name == name]
    node.name = "/another"
    onnx.save(model, path / "silero_vad.onnx")
    return path / "silero_vad.onnx"


async def test_a_network_that_cannot_take_many_calls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match=r"/Transpose is not in it"):
        await SileroVad(model=with_a_node_renamed("/Transpose", tmp_path)).load()


@pytest.mark.parametrize("part", ["padding/Pad", "Unsqueeze", "Conv"])
async def test_a_network_that_is_not_made_faster_hears_the_same(part: str, tmp_path: Path) -> None:
    slow = SileroVad(model=with_a_node_renamed(f"/encoder/feature_extractor/{part}", tmp_path))
    fast = SileroVad(model=Path(faster_whisper.__path__[0], "assets", "silero_vad_v6.onnx"))
    sound = np.random.default_rng(1).normal(0, 3_000, 8 * WINDOW_SAMPLES).astype(np.int16)
    await slow.load()
    await fast.load()

    assert await listen(slow.open(), sound) == pytest.approx(await listen(fast.open(), sound), abs=1e-5)


async def test_an_engine_that_is_not_loaded_says_so() -> None:
    with pytest.raises(RuntimeError, match="comes after load"):
        SileroVad().open()


async def test_closing_twice_or_unloaded_is_fine(vad: Vad) -> None:
    await vad.close()
    await vad.close()
    await SileroVad().close()
