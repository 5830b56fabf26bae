"""Hears with Whisper, through faster-whisper and CTranslate2.

Whisper takes whole recordings, so a partial is the utterance so far, recognised once more:

    partials    begun every `partial_every_ms` of sound, and no sooner than the last one took: a slow machine shows
                fewer. One at a time for each utterance. None is begun while all decoders are busy: it is skipped
    stable      what two partials in a row agree on (LocalAgreement-2: Machacek, Dabre and Bojar, "Turning Whisper into
                Real-Time Transcription System", 2023)
    final       the whole utterance once more, never skipped; a partial that has heard all of it is taken as the final

The decoders are threads: CTranslate2 releases the GIL. Nothing here starts a task; a partial that is ready is seen when
the next chunk of sound comes in.
"""

import asyncio
import concurrent.futures
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from media_server.audio.chunk import HEARING_HZ, AudioChunk, Pcm
from media_server.conversation import Transcript
from media_server.engines.protocols import Hints
from media_server.errors import EngineError, EngineMissingError

WINDOW_S = 30
"""What Whisper was trained on: every recording is padded to this, or cut into such windows."""

UTTERANCE_MAX_S = 60
CLOSE_LIMIT_S = 5.0
SHORTEST_SAMPLES = HEARING_HZ // 10
FRAMES_PER_S = 100

# Whisper's decoder holds 448 tokens: 2 x 100 for prompt and vocabulary, 200 new ones and a few marks fit.
HINT_TOKENS = 100
NEW_TOKENS_MAX = 200
NEW_TOKENS_PER_S = 15
"""Fast speech has 5 tokens a second in English, about 12 in Japanese. What runs on beyond is Whisper in a loop."""

# Written without spaces between words, so that a partial has no words that could be agreed upon
# (SYSTRAN/faster-whisper tokenizer.py, split_to_word_tokens).
LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


class WhisperAsr:
    """A Whisper model, shared by all calls."""

    name = "whisper"

    def __init__(
        self,
        *,
        model: str,
        device: str = "auto",
        compute_type: str = "default",
        threads: int = 1,
        decoders: int = 2,
        partial_every_ms: int = 500,
        context_s: float = WINDOW_S,
        final_timeout_s: float = 10.0,
    ) -> None:
        """Describe the model; nothing is read before `load`.

        Args:
            model: a name that faster-whisper knows, such as `base.en`, or the folder of a converted model.
            device: `cpu`, `cuda` or `auto`.
            compute_type: of CTranslate2, such as `int8`.
            threads: of one decoder, on a CPU.
            decoders: how many utterances are decoded at a time.
            partial_every_ms: sound between the beginnings of two partials.
            context_s: how much sound the encoder sees at least; shorter utterances are padded to it. Less than 30 is
                much faster on short utterances, but it is not what Whisper was trained on: real models then tend to
                repeat themselves, or to miss the end.
            final_timeout_s: how long a final is waited for.
        """
        if not 0 <= context_s <= WINDOW_S:
            raise ValueError(f"context_s lies between 0 and {WINDOW_S}, got {context_s:g}")
        self.why = f"Whisper {model} on {device}"
        self._model_name = model
        self._device = device
        self._compute_type = compute_type
        self._threads = threads
        self._decoders = decoders
        self._partial_every_ms = partial_every_ms
        self._context_s = context_s
        self._final_timeout_s = final_timeout_s
        self._model: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[_Heard]] = []

    async def load(self) -> None:
        """Load the model and let every decoder hear a second of silence.

        Raises:
            EngineMissingError: faster-whisper, the model or a file of it is not there, or it cannot run here.
        """
        self._pool = ThreadPoolExecutor(self._decoders, thread_name_prefix="whisper")
        try:
            self._model = await asyncio.wrap_future(self._begin_load())
            second = [np.zeros(HEARING_HZ, dtype=np.int16)]
            warm = [self.begin_final(second, Hints()) for _ in range(self._decoders)]
            await asyncio.gather(*(asyncio.wrap_future(each) for each in warm))
        except EngineError as error:
            await self.close()
            raise EngineMissingError(str(error)) from error.__cause__
        device = self._model.model.device
        self.why = f"Whisper {self._model_name} on {device}, {self._model.model.compute_type}"

    async def close(self) -> None:
        """Let the model go, once the decodes under way have ended; a decode that takes longer is left alone."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(concurrent.futures.wait, self._jobs, CLOSE_LIMIT_S)
        self._model = None

    async def transcribe(self, audio: AsyncIterator[AudioChunk], hints: Hints) -> AsyncGenerator[Transcript, None]:
        """Yield partial transcripts while `audio` lasts, then exactly one final.

        Sound beyond 60 s is not read: the final comes then, and its `end_pts` says how far it goes.
        """
        if self._pool is None:
            raise RuntimeError("WhisperAsr.transcribe() comes after load()")
        utterance = _Utterance(self, hints)
        try:
            async for chunk in audio:
                full = utterance.add(chunk)
                if (partial := utterance.take_partial()) is not None:
                    yield partial
                utterance.begin_partial(self._partial_every_ms)
                if full:
                    break
            yield await utterance.finish(self._final_timeout_s)
        finally:
            utterance.close()

    @property
    def busy(self) -> int:
        """Return how many decodes are under way or wait for a decoder."""
        self._jobs = [job for job in self._jobs if not job.done()]
        return len(self._jobs)

    def begin(self, sound: Sequence[Pcm], hints: Hints) -> "Future[_Heard] | None":
        """Begin to decode a partial, or return None while all decoders are busy."""
        if self.busy >= self._decoders:
            return None
        return self.begin_final(sound, hints)

    def begin_final(self, sound: Sequence[Pcm], hints: Hints) -> "Future[_Heard]":
        """Decode a final as soon as a decoder is free."""
        if self._pool is None:
            raise EngineError("Whisper has been closed")
        job = self._pool.submit(_decode, self._model, tuple(sound), hints)
        self._jobs = [*(job for job in self._jobs if not job.done()), job]
        return job

    def _begin_load(self) -> Future[Any]:
        """Load in a thread that nobody waits for at the end: a download from the hub has no limit."""
        loaded: Future[Any] = Future()
        loaded.set_running_or_notify_cancel()

        def load() -> None:
            try:
                loaded.set_result(self._load())
            except Exception as error:  # handed on
                loaded.set_exception(error)

        threading.Thread(target=load, name="whisper load", daemon=True).start()
        return loaded

    def _load(self) -> Any:
        """Return the loaded model; runs in a thread."""
        folder = _find_folder(self._model_name)
        try:
            import faster_whisper
        except ImportError:
            raise EngineMissingError("faster-whisper is not installed: pip install faster-whisper") from None
        # It logs two lines for every decode, thus for every partial.
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        try:
            model = faster_whisper.WhisperModel(
                str(folder or self._model_name),
                device=self._device,
                compute_type=self._compute_type,
                cpu_threads=self._threads,
                num_workers=self._decoders,
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = folder or f"{self._model_name!r}, a name that is looked up on the Hugging Face hub"
            raise EngineMissingError(
                f"Whisper model {where} (asr.whisper_model) cannot be loaded: {str(error)[:300]}"
            ) from error
        if self._context_s < WINDOW_S:
            _shorten_context(model, self._context_s)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What one decode made of its sound."""

    words: tuple[str, ...]
    language: str | None
    n_samples: int
    took_ms: float


class LocalAgreement:
    """Which words of an utterance's partials are stable: those that two partials in a row agree on."""

    def __init__(self) -> None:
        self._stable: tuple[str, ...] = ()
        self._last: tuple[str, ...] = ()

    def update(self, words: tuple[str, ...]) -> tuple[str, str]:
        """Take the words of a partial and return its text as stable part and tail. The stable part only grows."""
        agreed = 0
        while agreed < min(len(words), len(self._last)) and words[agreed] == self._last[agreed]:
            agreed += 1
        self._last = words
        if agreed > len(self._stable) and words[: len(self._stable)] == self._stable:
            self._stable = words[:agreed]
        return " ".join(self._stable), " ".join(words[len(self._stable) :])


class _Utterance:
    """One utterance as it grows, and the decode of it that is under way."""

    def __init__(self, asr: WhisperAsr, hints: Hints) -> None:
        self._asr = asr
        self._hints = hints
        self._sound: list[Pcm] = []
        self._n_samples = 0
        self._agreement = LocalAgreement()
        self._job: Future[_Heard] | None = None
        self._begun_ms = 0.0
        self._rest_until_ms = 0.0

    @property
    def _heard_ms(self) -> float:
        return self._n_samples * 1000 / HEARING_HZ

    def add(self, chunk: AudioChunk) -> bool:
        """Take more sound and return whether that was all that fits."""
        if chunk.rate_hz != HEARING_HZ:
            raise ValueError(f"Whisper hears {HEARING_HZ} Hz, got {chunk.rate_hz} Hz")
        room = UTTERANCE_MAX_S * HEARING_HZ - self._n_samples
        self._sound.append(chunk.pcm[:room])
        self._n_samples += len(self._sound[-1])
        return len(chunk.pcm) >= room

    def begin_partial(self, every_ms: int) -> None:
        """Begin a partial if one is due and none is under way."""
        if self._job is not None or self._heard_ms < max(self._begun_ms + every_ms, self._rest_until_ms):
            return
        self._begun_ms = self._heard_ms
        self._job = self._asr.begin(self._sound, self._hints)

    def take_partial(self) -> Transcript | None:
        """Return the partial that has become ready, or None."""
        if self._job is None or not self._job.done():
            return None
        heard = self._job.result()
        self._job = None
        # Sound comes in at the speed of time, so this leaves a decoder free for at least half of it.
        self._rest_until_ms = self._heard_ms + heard.took_ms
        if heard.language in LANGUAGES_WITHOUT_SPACES:
            stable, tail = "", " ".join(heard.words)
        else:
            stable, tail = self._agreement.update(heard.words)
        return Transcript(stable=stable, tail=tail, language=heard.language, end_pts=heard.n_samples)

    async def finish(self, timeout_s: float) -> Transcript:
        """Return the final."""
        if self._n_samples == 0:
            return Transcript(stable="", final=True)
        heard: _Heard | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if self._job is not None:
                    heard = await asyncio.wrap_future(self._job)
                if heard is None or heard.n_samples < self._n_samples:
                    self._job = self._asr.begin_final(self._sound, self._hints)
                    heard = await asyncio.wrap_future(self._job)
        except TimeoutError:
            raise EngineError(f"Whisper made no final within {timeout_s:g} s") from None
        text = " ".join(heard.words)
        return Transcript(stable=text, final=True, language=heard.language, end_pts=heard.n_samples)

    def close(self) -> None:
        """Cancel the decode if it still waits for a decoder; one under way ends unheard."""
        if self._job is not None:
            self._job.cancel()


def _find_folder(model: str) -> Path | None:
    """Return the folder of a model that is on this machine; None for a name.

    Raises:
        EngineMissingError: the folder is not there, or holds no tokenizer.
    """
    path = Path(model).expanduser()
    if not path.is_dir():
        # A name on the hub is `base.en` or `owner/name`.
        if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise EngineMissingError(f"{path}: there is no such folder (asr.whisper_model)")
        return None
    for name in ("model.bin", "tokenizer.json"):
        if not (path / name).is_file():
            # Without tokenizer.json, faster-whisper would ask the Hugging Face hub for one.
            raise EngineMissingError(
                f"{path} (asr.whisper_model) holds no {name}, wanted a model converted with "
                "`ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json`"
            )
    return path


def _shorten_context(model: Any, context_s: float) -> None:
    """Take the padding beyond `context_s` off what the encoder sees.

    faster-whisper pads every window with zeros to 30 s and has no option against it (SYSTRAN/faster-whisper
    transcribe.py, generate_segments).
    """
    encode = model.encode

    def encode_short(features: Any) -> Any:
        sounding = np.flatnonzero(features.any(axis=0))
        n_frames = max(int(sounding[-1]) + 1 if len(sounding) else 2, round(context_s * FRAMES_PER_S))
        return encode(features[:, : n_frames + n_frames % 2])

    model.encode = encode_short


def _decode(model: Any, sound: tuple[Pcm, ...], hints: Hints) -> _Heard:
    """Return what the model makes of the sound; runs in a thread."""
    begun_s = time.monotonic()
    pcm = np.concatenate(sound)
    n_samples = len(pcm)
    if n_samples < SHORTEST_SAMPLES:
        pcm = np.pad(pcm, (0, SHORTEST_SAMPLES - n_samples))
    seconds = n_samples / HEARING_HZ
    try:
        segments, info = model.transcribe(
            pcm.astype(np.float32) / 32_768.0,
            language=_pick_language(hints.language, model.supported_languages),
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            # Beyond one window, the time marks say where the next one begins.
            without_timestamps=seconds <= WINDOW_S,
            max_new_tokens=min(NEW_TOKENS_MAX, 20 + math.ceil(seconds * NEW_TOKENS_PER_S)),
            initial_prompt=_cut_prompt(hints.prompt, model.hf_tokenizer),
            hotwords=_cut_vocabulary(hints.vocabulary, model.hf_tokenizer),
        )
        text = " ".join(segment.text for segment in segments)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"Whisper could not decode {seconds:.1f} s of sound: {str(error)[:200]}") from error
    took_ms = (time.monotonic() - begun_s) * 1000
    return _Heard(words=tuple(text.split()), language=info.language, n_samples=n_samples, took_ms=took_ms)


def _pick_language(wanted: str | None, supported: Sequence[str]) -> str | None:
    """Return Whisper's word for a BCP 47 tag such as `en-US`; None lets the model find out."""
    language = (wanted or "").partition("-")[0].lower()
    return language if language in supported else None


def _cut_prompt(prompt: str | None, tokenizer: Any) -> list[int] | None:
    """Return the end of the prompt, as tokens."""
    if not prompt or not prompt.strip():
        return None
    tokens: list[int] = tokenizer.encode(f" {prompt.strip()}", add_special_tokens=False).ids
    return tokens[-HINT_TOKENS:]


def _cut_vocabulary(vocabulary: Sequence[str], tokenizer: Any) -> str | None:
    """Return as many of the words as fit."""
    words = ""
    for word in vocabulary:
        longer = f"{words}, {word}" if words else word
        if len(tokenizer.encode(f" {longer}", add_special_tokens=False).ids) > HINT_TOKENS:
            break
        words = longer
    return words or None
