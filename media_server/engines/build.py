"""Which engine serves each stage: from the configuration to the machines of a process."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from media_server.config import ROOT, AsrConfig, Config, LlmConfig, TtsConfig
from media_server.engines.asr_sphinx import SphinxAsr
from media_server.engines.asr_whisper import WhisperAsr
from media_server.engines.llm_rules import RulesLlm
from media_server.engines.protocols import Asr, Llm, Loadable, Tts, Vad
from media_server.engines.scenario import read_scenario
from media_server.engines.tts_espeak import EspeakTts
from media_server.engines.tts_memory import RememberingTts
from media_server.engines.tts_piper import PiperTts
from media_server.engines.vad_silero import SileroVad
from media_server.engines.workers.pool import PooledEngine
from media_server.errors import ConfigError, EngineError

SCENARIOS = ROOT / "config" / "scenarios"


class EngineSet:
    """The engines of a process, shared by all its calls."""

    def __init__(self, *, vad: Vad, asr: Asr, llm: Llm, tts: Tts, remember_mb: float = 0) -> None:
        """Take the engines, not loaded yet. `remember_mb`: of speech that is said again as it was made before."""
        self.vad = vad
        self.asr = asr
        self.llm = llm
        self.tts: Tts = RememberingTts(tts, limit_mb=remember_mb)
        self._stages: dict[str, Loadable] = {"vad": vad, "asr": asr, "llm": llm, "tts": tts}
        self._states = dict.fromkeys(self._stages, "warming")

    @property
    def greeting(self) -> str:
        """Return what the agent says first; empty: nothing. For loaded engines."""
        return self.llm.greeting if isinstance(self.llm, RulesLlm) else ""

    async def run(self) -> None:
        """Keep the engines' processes alive until cancelled; then give everything back."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for stage, engine in self._stages.items():
                    if isinstance(engine, PooledEngine):
                        tasks.create_task(engine.run(), name=f"engine {stage}")
                await asyncio.get_running_loop().create_future()
        finally:
            for engine in self._stages.values():
                await engine.close()

    async def load(self) -> None:
        """Load and warm every engine, at the same time. The first that fails ends it for all.

        Raises:
            EngineError: one of them cannot be had; says what to install or set.
            ConfigError: one of them cannot use what it was given.
        """
        await _at_once({stage: self._load(stage) for stage in self._stages})

    def states(self) -> dict[str, str]:
        """Return stage -> `warming`, `ready`, or `down: ` and why."""
        return {stage: self._state(stage, engine) for stage, engine in self._stages.items()}

    def lines(self) -> list[str]:
        """Return which engine serves each stage and why, one line each."""
        return [f"{stage}: {engine.name:<7} {engine.why}" for stage, engine in self._stages.items()]

    async def _load(self, stage: str) -> None:
        try:
            await self._stages[stage].load()
        except (EngineError, ConfigError) as error:
            self._states[stage] = f"down: {error}"
            raise
        self._states[stage] = "ready"

    def _state(self, stage: str, engine: Loadable) -> str:
        state = self._states[stage]
        failed = state.startswith("down")
        if not failed and isinstance(engine, PooledEngine) and engine.state in {"down", "closed"}:
            return f"down: {engine.why_down or 'its workers are closed'}"
        return state


class SharedWorkers:
    """The worker processes of the engines that the configuration names, for several processes to use."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Prepare; `folder` is where the others find them.

        Raises:
            ConfigError: what it says of the engines cannot be.
        """
        engines = {"asr": _build_asr(config.asr, config.llm), "tts": _build_tts(config.tts)}
        self._engines = {stage: engine for stage, engine in engines.items() if isinstance(engine, PooledEngine)}
        for engine in self._engines.values():
            engine.share_workers(folder)

    async def run(self) -> None:
        """Keep the workers alive until cancelled; then end them."""
        async with asyncio.TaskGroup() as tasks:
            for stage, engine in self._engines.items():
                tasks.create_task(engine.run(), name=f"engine {stage}")

    async def load(self) -> None:
        """Wait until all workers are warm; `run` must be running.

        Raises:
            EngineError: one of them cannot be had; says what to install or set.
            ConfigError: one of them cannot use what it was given.
        """
        await _at_once({stage: engine.load() for stage, engine in self._engines.items()})


async def _at_once(loads: dict[str, Coroutine[Any, Any, None]]) -> None:
    """Load all stages at the same time. The first that fails ends it for all, and is what is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for stage, load in loads.items():
                tasks.create_task(load, name=f"load {stage}")
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first has cancelled the rest


def build_engines(config: Config, *, workers_in: Path | None = None) -> EngineSet:
    """Return the engines that the configuration names, not loaded yet.

    Args:
        config: the configuration in force.
        workers_in: the folder of `SharedWorkers`, in another process; None: the engines have workers of their own.

    Raises:
        ConfigError: what it says of them cannot be.
    """
    asr, tts = _build_asr(config.asr, config.llm), _build_tts(config.tts)
    if workers_in is not None:
        for engine in (asr, tts):
            if isinstance(engine, PooledEngine):
                engine.join_workers(workers_in)
    return EngineSet(
        vad=SileroVad(model=Path(config.vad.model) if config.vad.model else None),
        asr=asr,
        llm=_build_llm(config.llm),
        tts=tts,
        remember_mb=config.tts.remember_mb,
    )


def _build_asr(config: AsrConfig, llm: LlmConfig) -> Asr:
    if config.engine == "whisper":
        return WhisperAsr(
            model=config.whisper_model,
            device=config.whisper_device,
            compute_type=config.whisper_compute_type,
            threads=config.whisper_threads,
            decoders=config.whisper_decoders,
            partial_every_ms=config.whisper_partial_ms,
            context_s=config.whisper_context_s,
            final_timeout_s=config.final_timeout_s,
        )
    if config.sphinx_grammar == "scenario":
        # The scenario's words help only the agent that runs the scenario.
        grammar = read_scenario(_scenario_file(llm.scenario)).grammar() if llm.engine == "rules" else None
    else:
        grammar = config.sphinx_grammar or None
    if grammar is not None and config.sphinx_corpus:
        raise ConfigError(
            f"asr.sphinx_corpus: found {config.sphinx_corpus[:80]!r} beside asr.sphinx_grammar = "
            f'{config.sphinx_grammar[:80]!r}, wanted one of them: asr.sphinx_grammar = "" for this one'
        )
    return SphinxAsr(
        workers=config.sphinx_workers,
        stable_ms=config.stable_ms,
        grammar=grammar,
        language_model=config.sphinx_corpus or None,
    )


def _build_llm(config: LlmConfig) -> Llm:
    if config.engine == "openai":
        from media_server.engines.llm_openai import OpenAiLlm  # its client takes 0.7 s to import

        return OpenAiLlm(
            base_url=config.base_url,
            model=config.model,
            api_key=config.api_key,
            first_token_timeout_s=config.first_token_timeout_s,
            token_timeout_s=config.token_timeout_s,
        )
    return RulesLlm(scenario=_scenario_file(config.scenario))


def _build_tts(config: TtsConfig) -> Tts:
    if config.engine == "piper":
        if not config.piper_model:
            raise ConfigError("tts.piper_model is empty, wanted the .onnx file of a voice")
        return PiperTts(model=config.piper_model)
    return EspeakTts(workers=config.espeak_workers)


def _scenario_file(name: str) -> Path:
    named = SCENARIOS / f"{name}.toml"
    return named if named.is_file() else Path(name)
