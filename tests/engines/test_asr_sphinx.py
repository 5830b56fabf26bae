"""The embedded recogniser, for real: pocketsphinx in its worker processes, hearing what espeak-ng says.

Real people are heard where the recordings lie beside the project (the environment variable PARLEY_SPEECH, or
../shared/speech); they do not come with it.
"""

import asyncio
import itertools
import json
import os
import signal
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from media_server.audio.chunk import HEARING_HZ, AudioChunk, Pcm, silence
from media_server.audio.resample import Resampler
from media_server.conversation import Transcript
from media_server.engines.asr_sphinx import SphinxAsr
from media_server.engines.asr_sphinx_model import CMN, IDLE_PER_BUILD, CepstralMean, Decoders, SphinxStream
from media_server.engines.protocols import Hints, Voice
from media_server.engines.tts_espeak import EspeakTts
from media_server.errors import ConfigError, EngineError

pytestmark = pytest.mark.models

GRAMMAR = """#JSGF V1.0;
grammar cafe;
// What may be ordered.
<drink> = coffee | espresso | orange juice | water;
public <order> = (i want | i would like | give me) (a | one | two) [large | small] <drink>;
"""
CORPUS = """I would like a large coffee.
Give me two small coffees, please.
I want one orange juice.
When do you open in the morning?"""

SPEECH = Path(os.environ.get("PARLEY_SPEECH", Path(__file__).resolve().parents[3] / "shared" / "speech"))

BARISTA = """#JSGF V1.0;
grammar barista;
<ask> = can i get | can i have | may i have | i want | i'd like | get me | make me | brew;
<size> = small | medium | large | (eight | twelve | sixteen | twenty) ounce;
<roast> = (light | medium | dark) roast;
<shots> = (single | double | triple) shot;
<how> = <size> | <roast> | <shots>;
<drink> = espresso | americano | cappuccino | latte | mocha | [iced | drip | house] coffee | iced (mocha | latte);
<amount> = some | a bit of | a little bit of | lots of | a lot of;
<milk> = cream | [whole | skim | soy | almond] milk;
<sugar> = [brown] sugar | sweetener;
<add> = [<amount>] (<milk> | <sugar>);
public <order> = <ask> [a | an] [<how>] [<how>] [<how>] <drink> [with <add> [and <add>]];
"""


@asynccontextmanager
async def loaded(asr: SphinxAsr) -> AsyncGenerator[SphinxAsr, None]:
    """Run a recogniser as the app does."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asr.run())
        try:
            await asr.load()
            yield asr
        finally:
            await asr.close()


async def synthesise(*texts: str) -> list[Pcm]:
    """Return the speech of each text at 16 kHz, with 300 ms of silence before it."""
    spoken = []
    async with asyncio.TaskGroup() as tasks:
        tts = EspeakTts()
        tasks.create_task(tts.run())
        await tts.load()
        for text in texts:
            pcm = np.concatenate([chunk.pcm async for chunk in tts.speak(text, Voice(speed=0.85))])
            spoken.append(np.concatenate([silence(4800), Resampler(tts.rate_hz, HEARING_HZ).push(pcm, last=True)]))
        await tts.close()
    return spoken


async def played(pcm: Pcm, chunk_samples: int = 512) -> AsyncGenerator[AudioChunk, None]:
    """Give sound in chunks."""
    for at in range(0, len(pcm), chunk_samples):
        await asyncio.sleep(0)
        yield AudioChunk(pcm[at : at + chunk_samples], HEARING_HZ, at)


async def hear(asr: SphinxAsr, audio: AsyncIterator[AudioChunk]) -> list[Transcript]:
    """Return all transcripts of an utterance."""
    return [transcript async for transcript in asr.transcribe(audio, Hints())]


async def heard(asr: SphinxAsr, pcm: Pcm) -> str:
    """Return the final text of an utterance."""
    return (await hear(asr, played(pcm)))[-1].text


async def test_an_order_is_heard_with_its_words_and_their_times() -> None:
    [pcm] = await synthesise("I would like two large coffee.")
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        transcripts = await hear(asr, played(pcm))

        final = transcripts[-1]
        assert final.text == "i would like two large coffee"
        assert [transcript.final for transcript in transcripts] == [False] * (len(transcripts) - 1) + [True]
        assert [word.text for word in final.words] == final.text.split()
        times = [time for word in final.words for time in (word.start_ms, word.end_ms)]
        assert times == sorted(times)
        assert 200 < times[0] < 500
        assert times[-1] <= len(pcm) * 1000 // HEARING_HZ
        assert final.end_pts == len(pcm)
        assert final.tail == ""


async def test_stable_text_only_grows_while_the_caller_speaks() -> None:
    [pcm] = await synthesise("I would like one small orange juice.")
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        partials = (await hear(asr, played(np.concatenate([pcm, silence(16_000)]))))[:-1]

        stable = [partial.stable for partial in partials]
        assert all(after.startswith(before) for before, after in itertools.pairwise(stable))
        assert stable[-1] == "i would like one small orange juice"
        assert [partial.end_pts for partial in partials] == sorted({partial.end_pts for partial in partials})


async def test_words_settle_sooner_where_that_is_asked_for() -> None:
    [pcm] = await synthesise("I would like one small orange juice.")
    firsts = []
    for stable_ms in (800, 300):
        async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1, stable_ms=stable_ms)) as asr:
            transcripts = await hear(asr, played(np.concatenate([pcm, silence(16_000)])))
        firsts.append(next(transcript.end_pts for transcript in transcripts if transcript.stable))

    assert firsts[1] < firsts[0]


async def test_what_is_not_speech_is_no_order() -> None:
    noise = (np.random.default_rng(7).standard_normal(32_000) * 1000).astype(np.int16)
    beep = (8000 * np.sin(np.arange(16_000) * 2 * np.pi * 880 / HEARING_HZ)).astype(np.int16)
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        assert [await heard(asr, pcm) for pcm in (silence(16_000), silence(0), noise, beep)] == ["", "", "", ""]


async def test_speech_that_the_grammar_does_not_allow_is_no_order() -> None:
    [pcm] = await synthesise("The weather will be cold and cloudy tomorrow.")
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        assert await heard(asr, pcm) == ""


async def test_a_corpus_is_enough_for_its_domain(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    [pcm] = await synthesise("When do you open in the morning?")
    for corpus in (CORPUS, str(tmp_path / "corpus.txt")):
        async with loaded(SphinxAsr(language_model=corpus, warm=1)) as asr:
            assert await heard(asr, pcm) == "when do you open in the morning"


@pytest.mark.parametrize(
    ("grammar", "language_model", "message"),
    [
        ("#JSGF V1.0;\ngrammar a;\npublic <b> = one blorfish | two xyzzys;", None, "grammar: .*: blorfish, xyzzys"),
        ("#JSGF V1.0;\ngrammar a;\n<b> = one;", None, "a public rule, found '#JSGF"),
        ("#JSGF V1.0;\ngrammar a;\npublic <b> = (one;", None, "not JSGF that pocketsphinx can read"),
        ("/no/such/grammar.jsgf", None, "'/no/such/grammar.jsgf': cannot be read: No such file"),
        (None, "/no/such/model.arpa", "expected a file or lines of text, found '/no/such/model.arpa'"),
        (None, "one blorfish\ntwo", "language_model: .*: blorfish"),
        (None, "...\n...", "expected sentences, found none"),
    ],
)
async def test_what_cannot_be_heard_is_said_at_start(
    grammar: str | None, language_model: str | None, message: str
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with loaded(SphinxAsr(grammar=grammar, language_model=language_model)):
            pass

    assert caught.group_contains(ConfigError, match=message)


def test_a_grammar_and_a_corpus_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either a grammar or a language model, got both"):
        SphinxAsr(grammar=GRAMMAR, language_model=CORPUS)


async def test_more_utterances_than_warm_decoders_are_heard_at_a_time() -> None:
    orders = ["I want a water.", "Give me one small espresso.", "I would like two large coffee."]
    pcms = await synthesise(*orders)
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        texts = await asyncio.gather(*(heard(asr, pcm) for pcm in pcms))

        assert list(texts) == [order.lower().rstrip(".") for order in orders]


async def test_a_killed_worker_costs_its_utterances_and_the_next_is_heard() -> None:
    [pcm] = await synthesise("I want a water.")

    async def interrupted() -> AsyncGenerator[AudioChunk, None]:
        yield AudioChunk(pcm[:8000], HEARING_HZ)
        os.kill(asr.process_ids[0], signal.SIGKILL)
        yield AudioChunk(pcm[8000:], HEARING_HZ, 8000)

    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        with pytest.raises(EngineError, match="the worker ended"):
            await hear(asr, interrupted())

        assert await heard(asr, pcm) == "i want a water"


async def test_an_utterance_that_is_given_up_leaves_its_decoder_to_the_next() -> None:
    [pcm] = await synthesise("I want a water.")
    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        async with aclosing(asr.transcribe(played(np.concatenate([pcm, pcm])), Hints())) as transcripts:
            await anext(transcripts)

        assert await heard(asr, pcm) == "i want a water"


async def test_sound_of_another_rate_is_our_mistake() -> None:
    async def telephone() -> AsyncGenerator[AudioChunk, None]:
        yield AudioChunk(silence(160), 8000)

    async with loaded(SphinxAsr(grammar=GRAMMAR, warm=1)) as asr:
        with pytest.raises(ValueError, match="the recogniser hears 16000 Hz, got 8000 Hz"):
            await hear(asr, telephone())


class FakeDecoder:
    """What pocketsphinx's decoder is asked for when nothing is heard."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def set_cmn(self, mean: str) -> None:
        """Note the call."""
        self.calls.append(f"set_cmn {mean[:5]}")

    def start_utt(self) -> None:
        """Note the call."""
        self.calls.append("start_utt")

    def end_utt(self) -> None:
        """Note the call."""
        self.calls.append("end_utt")

    def process_raw(self, pcm: bytes) -> None:
        """Hear nothing."""


def test_a_decoder_ends_its_utterance_and_goes_back_to_the_free_ones() -> None:
    free: list[FakeDecoder] = []
    decoder = FakeDecoder()

    SphinxStream(decoder, free.append, CepstralMean()).close()

    assert free == [decoder]
    assert decoder.calls == ["set_cmn 46.11", "start_utt", "end_utt"]


class SlowBuild:
    """Makes decoders, and the clock that says how long that took: 20 ms each."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.alive: weakref.WeakSet[FakeDecoder] = weakref.WeakSet()

    def __call__(self) -> FakeDecoder:
        """Make one."""
        self.now_s += 0.02
        decoder = FakeDecoder()
        self.alive.add(decoder)
        return decoder

    def clock(self) -> float:
        """Return the time."""
        return self.now_s


def use(decoders: Decoders, n: int) -> None:
    """Let so many utterances be open at a time."""
    for decoder in [decoders.take() for _ in range(n)]:
        decoders.give_back(decoder)
    decoders.tidy()


def test_decoders_that_nobody_needed_for_long_are_given_up_and_the_warm_ones_are_kept() -> None:
    build = SlowBuild()
    decoders = Decoders(build, 2, build.clock)
    use(decoders, 6)
    build.now_s += 0.9 * IDLE_PER_BUILD * 0.02
    use(decoders, 3)
    soon = len(build.alive)
    build.now_s += 0.2 * IDLE_PER_BUILD * 0.02
    use(decoders, 1)
    later = len(build.alive)
    build.now_s += 10 * IDLE_PER_BUILD * 0.02
    decoders.tidy()

    assert (soon, later, len(build.alive)) == (6, 3, 2)


def test_a_decoder_that_is_in_use_is_not_given_up() -> None:
    build = SlowBuild()
    decoders = Decoders(build, 1, build.clock)
    used = [decoders.take() for _ in range(3)]
    use(decoders, 1)
    build.now_s += 10 * IDLE_PER_BUILD * 0.02
    decoders.tidy()

    assert len(build.alive) == len(used)
    assert decoders.take() not in used


def test_the_cepstral_mean_moves_by_a_part_towards_what_was_heard() -> None:
    mean = CepstralMean()

    mean.move(",".join(str(value + 10) for value in CMN))

    assert mean.text.startswith("49.11,5.34,2.83,")


@pytest.mark.models
async def test_the_general_model_hears_any_english() -> None:
    [pcm] = await synthesise("What would you like to drink today?")
    async with loaded(SphinxAsr(warm=1)) as asr:
        assert len({"what", "would", "you", "like", "to", "drink"} & set((await heard(asr, pcm)).split())) >= 3


@pytest.mark.models
async def test_real_orders_are_heard_and_real_noises_are_not() -> None:
    async with loaded(SphinxAsr(grammar=BARISTA)) as asr:
        slots = found = 0
        for entry, pcm in recordings("barista"):
            spoken = entry["silero_v6_segments"]
            start, end = int((spoken[0][0] - 0.3) * HEARING_HZ), int((spoken[-1][1] + 0.3) * HEARING_HZ)
            text = await heard(asr, pcm[max(0, start) : end])
            slots += len(entry["slots"])
            found += sum(f" {slot} " in f" {text} " for slot in entry["slots"].values())
        noises = [await heard(asr, pcm) for _, pcm in recordings("negatives")]

        assert found >= 0.95 * slots
        assert [text for text in noises if text] == []


def recordings(kind: str) -> list[tuple[dict[str, Any], Pcm]]:
    """Return the manifest entries of a set with their sound at 16 kHz."""
    if not (SPEECH / "manifest.jsonl").exists():
        pytest.skip(f"no recordings in {SPEECH}: set PARLEY_SPEECH")
    entries = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]
    return [(entry, read_sound(SPEECH / entry["file"])) for entry in entries if entry["set"] == kind]


def read_sound(path: Path) -> Pcm:
    """Return a file's sound at 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=HEARING_HZ)
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]])
