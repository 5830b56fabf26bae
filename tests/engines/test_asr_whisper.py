"""The real faster-whisper, loader and decoder and all, runs a tiny model that says more the longer it hears."""

import asyncio
import shutil
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from media_server.audio.chunk import HEARING_HZ, AudioChunk, Pcm, silence
from media_server.conversation import Transcript
from media_server.engines.asr_whisper import LocalAgreement, WhisperAsr
from media_server.engines.protocols import Asr, Hints
from media_server.errors import EngineError, EngineMissingError
from tests.engines.tiny_whisper import SENTENCE, build_tiny_whisper

pytestmark = pytest.mark.models

NO_HINTS = Hints()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
async def asr(folder: Path) -> AsyncGenerator[WhisperAsr, None]:
    engine = WhisperAsr(model=str(folder), device="cpu", decoders=1)
    await engine.load()
    yield engine
    await engine.close()


def noise(seconds: float) -> Pcm:
    """Return loud noise, which the tiny model takes for speech."""
    random = np.random.default_rng(3)
    return (random.standard_normal(int(seconds * HEARING_HZ)) * 3000).astype(np.int16)


async def spoken(seconds: float) -> AsyncIterator[AudioChunk]:
    """Yield sound all at once."""
    yield AudioChunk(noise(seconds), HEARING_HZ)


async def spoken_slowly(asr: WhisperAsr, seconds: float) -> AsyncIterator[AudioChunk]:
    """Yield sound by the tenth of a second, each after what was begun on the last has been decoded."""
    pcm = noise(seconds)
    for start in range(0, len(pcm), 1600):
        yield AudioChunk(pcm[start : start + 1600], HEARING_HZ, start)
        await idle(asr)


async def idle(asr: WhisperAsr) -> None:
    while asr.busy:  # noqa: ASYNC110  a decoder thread sets no event of the loop
        await asyncio.sleep(0)


async def collect(transcripts: AsyncGenerator[Transcript, None]) -> list[Transcript]:
    async with aclosing(transcripts):
        return [each async for each in transcripts]


async def hear(asr: Asr, seconds: float, hints: Hints = NO_HINTS) -> Transcript:
    """Return the final of so much sound."""
    final = (await collect(asr.transcribe(spoken(seconds), hints)))[-1]
    assert final.final
    return final


@pytest.mark.parametrize(("seconds", "words"), [(0.02, 0), (0.3, 0), (0.7, 1), (2.2, 4), (20.0, 7)])
async def test_the_final_is_what_the_model_heard(asr: WhisperAsr, seconds: float, words: int) -> None:
    final = await hear(asr, seconds)

    assert final == Transcript(
        stable=" ".join(SENTENCE.split()[:words]), final=True, language="en", end_pts=int(seconds * HEARING_HZ)
    )


@pytest.mark.models
async def test_partials_grow_with_the_sound_and_their_stable_words_stay(asr: WhisperAsr) -> None:
    *partials, final = await collect(asr.transcribe(spoken_slowly(asr, 7.0), NO_HINTS))

    assert len(partials) >= 2
    assert not any(partial.final for partial in partials)
    assert partials[0].stable == ""
    for before, after in zip(partials, [*partials[1:], final], strict=True):
        assert after.stable.startswith(before.stable)
        assert after.end_pts > before.end_pts
    assert (final.stable, final.final) == (SENTENCE, True)


async def test_a_partial_that_heard_everything_is_the_final(asr: WhisperAsr) -> None:
    async def half_a_second() -> AsyncIterator[AudioChunk]:
        yield AudioChunk(noise(0.7), HEARING_HZ)
        assert asr.busy == 1

    assert [each.text for each in await collect(asr.transcribe(half_a_second(), NO_HINTS))] == ["turn"]


async def test_sound_after_the_last_partial_is_in_the_final(asr: WhisperAsr) -> None:
    async def in_two_chunks() -> AsyncIterator[AudioChunk]:
        pcm = noise(2.2)
        yield AudioChunk(pcm[:11_200], HEARING_HZ)
        yield AudioChunk(pcm[11_200:], HEARING_HZ, 11_200)

    assert (await collect(asr.transcribe(in_two_chunks(), NO_HINTS)))[-1].text == "turn on the lamp"


async def test_busy_decoders_skip_partials_but_never_a_final(asr: WhisperAsr) -> None:
    go_on = asyncio.Event()

    async def held() -> AsyncIterator[AudioChunk]:
        yield AudioChunk(noise(29.0), HEARING_HZ)
        go_on.set()
        await asyncio.Event().wait()

    holder = asyncio.create_task(collect(asr.transcribe(held(), NO_HINTS)))
    await go_on.wait()
    others = await collect(asr.transcribe(spoken(1.2), NO_HINTS))
    holder.cancel()
    await asyncio.wait([holder])

    assert [each.text for each in others] == ["turn on"]


async def test_many_utterances_at_a_time_share_the_decoders(folder: Path) -> None:
    asr = WhisperAsr(model=str(folder), device="cpu", decoders=2)
    await asr.load()

    finals = await asyncio.gather(*(hear(asr, seconds) for seconds in (0.7, 1.2, 1.7, 2.2)))
    await asr.close()

    assert [len(final.text.split()) for final in finals] == [1, 2, 3, 4]


async def test_an_utterance_that_is_closed_early_leaves_no_decode(asr: WhisperAsr) -> None:
    async with aclosing(asr.transcribe(spoken_slowly(asr, 10.0), NO_HINTS)) as transcripts:
        await anext(transcripts)

    await idle(asr)
    assert asr.busy == 0


async def test_an_utterance_longer_than_a_window_is_heard_in_two(asr: WhisperAsr) -> None:
    assert (await hear(asr, 35.0)).text == f"{SENTENCE} {SENTENCE}"


async def test_sound_beyond_60_seconds_is_not_read(asr: WhisperAsr) -> None:
    n_read = 0

    async def endless() -> AsyncIterator[AudioChunk]:
        nonlocal n_read
        while True:
            n_read += 1
            yield AudioChunk(silence(7 * HEARING_HZ), HEARING_HZ)

    final = (await collect(asr.transcribe(endless(), NO_HINTS)))[-1]

    assert n_read == 9
    assert final.end_pts == 60 * HEARING_HZ


async def test_no_sound_at_all_has_an_empty_final(asr: WhisperAsr) -> None:
    async def nothing() -> AsyncIterator[AudioChunk]:
        return
        yield

    assert await collect(asr.transcribe(nothing(), NO_HINTS)) == [Transcript(stable="", final=True)]


async def test_hints_too_long_for_the_model_are_cut(asr: WhisperAsr) -> None:
    hints = Hints(language="en-GB", prompt="A lamp. " * 1000, vocabulary=("lamp", "kitchen") * 500)

    assert (await hear(asr, 2.2, hints)).text == "turn on the lamp"


async def test_a_multilingual_model_hears_in_the_language_of_the_hint(tmp_path: Path) -> None:
    asr = WhisperAsr(model=str(build_tiny_whisper(tmp_path, multilingual=True)), device="cpu")
    await asr.load()

    german = await hear(asr, 0.7, Hints(language="de-DE"))
    unknown = await hear(asr, 0.7, Hints(language="tlh"))
    await asr.close()

    assert german.language == "de"
    assert unknown.language == "en"


@pytest.mark.models
async def test_a_language_without_spaces_has_no_stable_words_before_the_final(tmp_path: Path) -> None:
    asr = WhisperAsr(model=str(build_tiny_whisper(tmp_path, multilingual=True)), device="cpu")
    await asr.load()

    *partials, final = await collect(asr.transcribe(spoken_slowly(asr, 4.0), Hints(language="ja")))
    await asr.close()

    assert partials
    assert {partial.stable for partial in partials} == {""}
    assert final.stable == SENTENCE


async def test_a_short_context_shows_the_encoder_only_the_sound(folder: Path) -> None:
    asr = WhisperAsr(model=str(folder), device="cpu", context_s=0)
    await asr.load()

    # The tiny model counts the share of the window that sounds; without padding, that is all of it.
    assert (await hear(asr, 0.3)).text == SENTENCE
    await asr.close()


async def test_another_rate_is_refused(asr: WhisperAsr) -> None:
    async def telephone() -> AsyncIterator[AudioChunk]:
        yield AudioChunk(silence(160), 8000)

    with pytest.raises(ValueError, match="hears 16000 Hz, got 8000 Hz"):
        await collect(asr.transcribe(telephone(), NO_HINTS))


async def test_a_final_that_takes_too_long_fails(folder: Path) -> None:
    asr = WhisperAsr(model=str(folder), device="cpu", final_timeout_s=1e-6)
    await asr.load()

    with pytest.raises(EngineError, match="made no final within"):
        await collect(asr.transcribe(spoken(0.4), NO_HINTS))
    await asr.close()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match=r"there is no such folder \(asr\.whisper_model\)"):
        await WhisperAsr(model=str(tmp_path / "base")).load()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.bin"])
async def test_a_folder_without_a_needed_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()

    with pytest.raises(EngineMissingError, match=f"holds no {name}"):
        await WhisperAsr(model=str(tmp_path / "copy")).load()


async def test_a_broken_model_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.bin").write_bytes(b"no model")

    with pytest.raises(EngineMissingError, match=r"copy .*cannot be loaded"):
        await WhisperAsr(model=str(tmp_path / "copy"), device="cpu").load()


async def test_a_compute_type_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(EngineMissingError, match="float17"):
        await WhisperAsr(model=str(folder), device="cpu", compute_type="float17").load()


async def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)

    with pytest.raises(EngineMissingError, match="pip install faster-whisper"):
        await WhisperAsr(model=str(folder)).load()


async def test_an_engine_that_is_not_loaded_says_so() -> None:
    with pytest.raises(RuntimeError, match="comes after load"):
        await collect(WhisperAsr(model="base.en").transcribe(spoken(0.1), NO_HINTS))


async def test_closing_twice_or_unloaded_is_fine(asr: WhisperAsr) -> None:
    await asr.close()
    await asr.close()
    await WhisperAsr(model="base.en").close()


async def test_a_load_that_does_not_end_holds_up_neither_close_nor_the_process() -> None:
    begun, let_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Downloading(WhisperAsr):
        def _load(self) -> Any:
            loop.call_soon_threadsafe(begun.set)
            let_go.wait()

    asr = Downloading(model="base.en")
    loading = asyncio.create_task(asr.load())
    await begun.wait()
    loading.cancel()
    await asyncio.wait([loading])
    await asr.close()

    (thread,) = (thread for thread in threading.enumerate() if thread.name == "whisper load")
    assert thread.daemon
    let_go.set()
    thread.join()


def test_words_are_stable_once_two_partials_agree_on_them() -> None:
    agreement = LocalAgreement()

    assert agreement.update(("turn", "of")) == ("", "turn of")
    assert agreement.update(("turn", "on", "the")) == ("turn", "on the")
    assert agreement.update(("turn", "on", "a")) == ("turn on", "a")


def test_stable_words_stay_where_later_partials_disagree() -> None:
    agreement = LocalAgreement()
    agreement.update(("turn", "on"))
    agreement.update(("turn", "on"))

    assert agreement.update(("turn", "off", "now")) == ("turn on", "now")
    assert agreement.update(("turn", "off", "now")) == ("turn on", "now")
    assert agreement.update(()) == ("turn on", "")


def test_a_context_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 30, got 31"):
        WhisperAsr(model="base.en", context_s=31)
