"""Which engine serves each stage, and how they live together."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from media_server.config import Config, load_config
from media_server.engines.build import EngineSet, SharedWorkers, build_engines
from media_server.engines.llm_rules import RulesLlm
from media_server.engines.protocols import Voice
from media_server.engines.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad
from media_server.engines.workers.pool import PooledEngine
from media_server.errors import ConfigError, EngineMissingError


def configured(**values: Any) -> Config:
    """Return the shipped configuration with values on top, a section and a name with `__` between them."""
    return load_config({}, flags={name.replace("__", "."): value for name, value in values.items()}).config


class Engine(ScriptedVad):
    """Loads when it is let, or fails; says how it ended."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.cancelled = self.closed = False
        self._failure = failure

    async def load(self) -> None:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        self.closed = True


class EchoVoice(PooledEngine, ScriptedTts):
    """A voice in a worker."""

    name = "echo"

    def __init__(self) -> None:
        PooledEngine.__init__(self, "tests.engines.echo_model:EchoModel", {}, count=1, streams_max=1)


def engine_set(**engines: Any) -> EngineSet:
    scripted: dict[str, Any] = {
        "vad": ScriptedVad(),
        "asr": ScriptedAsr([""]),
        "llm": ScriptedLlm([[]]),
        "tts": ScriptedTts(),
    }
    return EngineSet(**(scripted | engines))


def test_as_shipped_all_engines_are_embedded_and_the_recogniser_knows_the_scenario() -> None:
    engines = build_engines(configured())

    assert [line.split()[:2] for line in engines.lines()] == [
        ["vad:", "silero"],
        ["asr:", "sphinx"],
        ["llm:", "rules"],
        ["tts:", "espeak"],
    ]
    assert engines.asr.why.startswith("pocketsphinx with a grammar")


def test_with_a_language_model_the_recogniser_knows_no_scenario() -> None:
    config = configured(llm__engine="openai", llm__base_url="http://127.0.0.1:9/v1", llm__model="tiny")

    engines = build_engines(config)

    assert engines.llm.why == "tiny at http://127.0.0.1:9/v1"
    assert engines.asr.why.startswith("pocketsphinx with the general English model")
    assert engines.greeting == ""


def test_a_corpus_takes_the_place_of_the_grammar_and_does_not_stand_beside_it() -> None:
    engines = build_engines(configured(asr__sphinx_corpus="corpus.txt", asr__sphinx_grammar=""))

    assert engines.asr.why.startswith("pocketsphinx with a domain language model")
    with pytest.raises(ConfigError, match=r'asr\.sphinx_corpus: .*, wanted one of them: asr\.sphinx_grammar = ""'):
        build_engines(configured(asr__sphinx_corpus="corpus.txt"))


def test_whisper_and_piper_are_there_when_they_are_named() -> None:
    config = configured(
        asr__engine="whisper", asr__whisper_model="tiny", tts__engine="piper", tts__piper_model="a.onnx"
    )

    engines = build_engines(config)

    assert (engines.asr.why, engines.tts.why) == ("Whisper tiny on auto", "Piper with a")


def test_piper_without_a_voice_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match=r"tts\.piper_model is empty"):
        build_engines(configured(tts__engine="piper"))


async def test_the_greeting_is_the_scenarios() -> None:
    engines = build_engines(configured())
    await engines.llm.load()

    assert isinstance(engines.llm, RulesLlm)
    assert engines.greeting == engines.llm.greeting != ""


async def test_once_all_are_loaded_all_are_ready() -> None:
    slow = Engine()
    engines = engine_set(vad=slow)
    loading = asyncio.create_task(engines.load())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert engines.states() == {"vad": "warming", "asr": "ready", "llm": "ready", "tts": "ready"}
    slow.go_on.set()
    await loading
    assert engines.states()["vad"] == "ready"


@pytest.mark.parametrize("failure", [EngineMissingError("install a wall"), ConfigError("found no wall")])
async def test_the_first_that_fails_is_told_at_once_and_the_rest_is_not_waited_for(failure: Exception) -> None:
    slow, broken = Engine(), Engine(failure)
    engines = engine_set(vad=slow, asr=broken)
    broken.go_on.set()

    with pytest.raises(type(failure), match=str(failure)):
        await engines.load()

    assert slow.cancelled
    assert engines.states()["asr"] == f"down: {failure}"


async def test_cancelling_run_closes_every_engine() -> None:
    first, last = Engine(), Engine()
    engines = engine_set(vad=first, tts=last)
    running = asyncio.create_task(engines.run())
    await asyncio.sleep(0)

    running.cancel()
    await asyncio.wait([running])

    assert first.closed
    assert last.closed


async def test_an_engine_whose_workers_are_closed_is_down() -> None:
    voice = EchoVoice()
    engines = engine_set(tts=voice)
    running = asyncio.create_task(engines.run())
    await engines.load()
    assert engines.states()["tts"] == "ready"

    running.cancel()
    await asyncio.wait([running])

    assert engines.states()["tts"] == "down: its workers are closed"


@pytest.mark.models
async def test_engines_may_use_the_workers_of_another_process(tmp_path: Path) -> None:
    workers = SharedWorkers(configured(), tmp_path)
    engines = build_engines(configured(), workers_in=tmp_path)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(workers.run()), tasks.create_task(engines.run())]
        await workers.load()
        await engines.load()
        async with aclosing(engines.tts.speak("Hello.", Voice("default"))) as speech:
            said = [chunk async for chunk in speech]
        for task in reversed(running):
            task.cancel()
            await asyncio.wait([task])

    assert sum(len(chunk.pcm) for chunk in said) > engines.tts.rate_hz // 5
    assert isinstance(engines.asr, PooledEngine)
    assert engines.asr.process_ids == []


async def test_an_engine_whose_shared_workers_are_down_is_down_and_says_why_before_it_was_ready(tmp_path: Path) -> None:
    voice = EchoVoice()
    voice.join_workers(tmp_path)
    engines = engine_set(tts=voice)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engines.run())
        async with asyncio.timeout(10):
            while voice.state != "down":  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0)

        state = engines.states()["tts"]
        running.cancel()

    assert state == "down: echo: the workers' socket cannot be reached: No such file or directory"
