"""pocketsphinx inside its worker process: decoders, grammars, language models.

Three ways of hearing:

    a grammar      only what it allows can come out, with the fewest errors and the least work
    a corpus       example sentences become a small trigram model; only their words can come out
    neither        the general model of the wheel: any English, with many errors

Beside a grammar runs a loop over the 39 sounds of English, which any sound at all fits. Where it explains an utterance
better than the grammar does, the answer is "" and no order that nobody gave. See `SOUND_CHANCE`.
"""

import contextlib
import ctypes
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pocketsphinx

from media_server.engines.trigram import build_arpa, sentences
from media_server.engines.workers.child import Send
from media_server.errors import ConfigError

SAMPLE_BYTES = 2
STEP_BYTES = 1600 * SAMPLE_BYTES
"""A hypothesis is taken every 100 ms of sound."""

FRAME_MS = 10

CMN = (46.11, 2.34, -0.17, 2.72, -4.10, -1.04, -4.93, -0.63, -2.24, -0.03, 0.75, -1.17, 2.14)
"""Where the mean of the cepstra is thought to lie when an utterance begins: the mean of 60 utterances by many speakers.

pocketsphinx moves it while it listens, too late for a short utterance. Word error rate of those 60, mixed, with the
general model: 0.62 from the library's own start for each, 0.54 from this one, 0.52 when each utterance moves the next
one's start by `CMN_SHARE`.
"""

CMN_SHARE = 0.3

SOUND_CHANCE = 0.05
"""How likely each sound of the loop is.

Measured on 45 spoken orders (158 slots), 33 noises and 98 readings and meetings, with the grammar of the orders:

    chance      slots found      noises taken for orders      other speech taken for orders
    no loop     155              5                            68
    0.025       155              0                             7
    0.05        155              0                             4
    0.1         149              0                             1
    0.25        147              0                             0
    1.0         101              0                             0
"""

IDLE_PER_BUILD = 500
"""A decoder that nobody needed for so many times as long as it took to make is given up: 10 s with a grammar or a
corpus, some 3 minutes with the general model. So memory follows the callers, and making anew takes little of the
worker's time."""

_SOUNDS = (  # the model's phones, but for silence and noises
    *(
        "AA",
        "AE",
        "AH",
        "AO",
        "AW",
        "AY",
        "B",
        "CH",
        "D",
        "DH",
        "EH",
        "ER",
        "EY",
        "F",
        "G",
        "HH",
        "IH",
        "IY",
        "JH",
        "K",
    ),
    *("L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)

_SEARCH = "parley"
_GENERAL_MODEL = "en-us/en-us.lm.bin"
_WORDS_SHOWN = 12
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PUBLIC_RULE = re.compile(r"\bgrammar\s+([^\s;]+)\s*;.*?\bpublic\s*<([^>]+)>", re.DOTALL)
_VARIANT = re.compile(r"\(\d+\)$")
_LANGUAGE_MODELS = (".lm", ".arpa", ".bin", ".dmp", ".gz")


@dataclass(frozen=True, slots=True)
class Domain:
    """What is heard, and nothing else.

    Attributes:
        grammar: whether `model` is a grammar (FSG) or a language model (ARPA).
        dictionary: the words' sounds, of these words only: with the whole dictionary beside it, pocketsphinx takes 7 s
            to set up a small language model (it enters 135,000 words into a hash table made for 50).
    """

    grammar: bool
    model: str
    dictionary: str


class SphinxModel:
    """Decoders, one an open utterance; those that are free wait for the next, the last one used first.

    Grammar or language model are there once for all of them. A decoder has 10 MB with a grammar, 60 with the general
    model.

    Args:
        options: `grammar` and `language_model` (see `SphinxAsr`), `warm`: how many decoders to begin with, and to keep.

    Raises:
        ConfigError: the grammar or the language model cannot be used; says why.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._domain = _read_domain(options["grammar"], options["language_model"])
        self._model: Any = None
        self.about: dict[str, Any] = {}
        self._mean = CepstralMean()
        self._decoders = Decoders(self._build, max(1, options["warm"]))

    def open(self, request: dict[str, Any]) -> "SphinxStream":
        """Begin an utterance."""
        decoder = self._decoders.take()
        try:
            return SphinxStream(decoder, self._decoders.give_back, self._mean)
        except BaseException:
            self._decoders.give_back(decoder)
            raise

    def tidy(self) -> None:
        """Give up decoders that nobody needs any more."""
        self._decoders.tidy()

    def _build(self) -> Any:
        """Return a new decoder: about 20 ms for a grammar or a corpus, 0.4 s for the general model."""
        domain = self._domain
        if isinstance(domain, Domain):
            with _Written(domain.dictionary, ".dict") as dictionary:
                decoder = _decoder(dict=dictionary)
        else:
            decoder = _decoder()
        if self._model is None:
            self._model = self._read_model(decoder)
        if isinstance(domain, Domain) and domain.grammar:
            decoder.add_fsg(_SEARCH, self._model)
        else:
            decoder.add_lm(_SEARCH, self._model)
        decoder.activate_search(_SEARCH)
        return decoder

    def _read_model(self, decoder: Any) -> Any:
        domain = self._domain
        if isinstance(domain, str):
            return _read_language_model(decoder, domain)
        with _Written(domain.model, ".txt") as path:
            return decoder.read_fsg(path) if domain.grammar else _read_language_model(decoder, path)


class Decoders:
    """Decoders without an utterance; who needs one takes the one used last, or else a new one.

    Args:
        build: makes a decoder.
        warm: how many are made at once and never given up.
        clock: in s.
    """

    def __init__(self, build: Callable[[], Any], warm: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._build = build
        self._warm = warm
        self._clock = clock
        self._build_s = math.inf  # at best: others may have had the core
        self._n_made = 0
        self._free: list[tuple[Any, float]] = []  # with the time since when; the earliest first
        for decoder in [self._make() for _ in range(warm)]:
            _warm_up(decoder)
            self.give_back(decoder)

    def take(self) -> Any:
        """Return one."""
        return self._free.pop()[0] if self._free else self._make()

    def give_back(self, decoder: Any) -> None:
        """Take it back."""
        self._free.append((decoder, self._clock()))

    def tidy(self) -> None:
        """Give up those that have waited too long."""
        now_s = self._clock()
        n_spare = min(len(self._free), self._n_made - self._warm)
        idle_limit_s = IDLE_PER_BUILD * self._build_s
        n_idle = sum(now_s - since_s > idle_limit_s for _, since_s in self._free[:n_spare])
        if n_idle:
            del self._free[:n_idle]
            self._n_made -= n_idle
            _return_memory()

    def _make(self) -> Any:
        begun_s = self._clock()
        decoder = self._build()
        self._build_s = min(self._build_s, self._clock() - begun_s)
        self._n_made += 1
        return decoder


class SphinxStream:
    """One utterance on one decoder."""

    def __init__(self, decoder: Any, give_back: Callable[[Any], None], mean: "CepstralMean") -> None:
        self._decoder = decoder
        self._give_back = give_back
        self._mean = mean
        self._pcm = bytearray()
        self._heard_bytes = 0
        self._ended = False
        decoder.set_cmn(mean.text)
        decoder.start_utt()

    def feed(self, body: bytes, send: Send) -> None:
        """Hear a piece of sound and send what it may mean, every 100 ms of it."""
        self._pcm += body
        while len(self._pcm) >= STEP_BYTES:
            self._hear(STEP_BYTES)
            if not send(self._note(final=False), b""):
                return

    def finish(self, send: Send) -> None:
        """Hear the rest and send the last word."""
        if self._pcm:
            self._hear(len(self._pcm))
        self._end()
        note = self._note(final=True)
        if note["words"]:  # noise would only mislead the next utterance
            self._mean.move(self._decoder.get_cmn(False))
        send(note, b"")

    def close(self) -> None:
        """Give the decoder back."""
        self._end()
        self._give_back(self._decoder)

    def _hear(self, n_bytes: int) -> None:
        self._decoder.process_raw(bytes(self._pcm[:n_bytes]))
        self._heard_bytes += n_bytes
        del self._pcm[:n_bytes]

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._decoder.end_utt()

    def _note(self, *, final: bool) -> dict[str, Any]:
        heard_samples = self._heard_bytes // SAMPLE_BYTES
        if self._decoder.hyp() is None:  # so far nothing; at the end, the grammar was not fulfilled
            return {"heard_samples": heard_samples, "final": final, "words": []}
        words = [
            (_VARIANT.sub("", part.word), part.start_frame * FRAME_MS, (part.end_frame + 1) * FRAME_MS)
            for part in self._decoder.seg()
            if part.word[0] not in "<[+("  # silence, noise, a sound of the loop, a null transition
        ]
        return {"heard_samples": heard_samples, "final": final, "words": words}


class CepstralMean:
    """Where the cepstra of the next utterance probably have their mean: what channels and voices sound like here."""

    def __init__(self) -> None:
        self._values: tuple[float, ...] = CMN

    @property
    def text(self) -> str:
        """Return the mean as pocketsphinx reads it."""
        return ",".join(f"{value:.2f}" for value in self._values)

    def move(self, heard: str) -> None:
        """Move towards the mean of an utterance, as pocketsphinx writes it."""
        values = (float(value) for value in heard.split(","))
        self._values = tuple(old + CMN_SHARE * (new - old) for old, new in zip(self._values, values, strict=True))


class _Written:
    """A text as a file, for as long as a library reads it."""

    def __init__(self, text: str, suffix: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=suffix, delete=False, encoding="utf-8") as file:
            file.write(text)
        self._path = file.name

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, *_: object) -> None:
        os.unlink(self._path)


def _decoder(**config: Any) -> Any:
    # fwdflat and bestpath are second and third passes after the last sample: 6-9 ms to the final without them.
    # With no model of its own: the searches share one.
    return pocketsphinx.Decoder(lm=None, fwdflat=False, bestpath=False, loglevel="FATAL", **config)


def _return_memory() -> None:
    """Give what was freed back to the system, where its allocator (glibc) keeps it: about 5 ms."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _warm_up(decoder: Any) -> None:
    decoder.start_utt()
    decoder.process_raw(bytes(10 * STEP_BYTES))
    decoder.end_utt()


def _read_language_model(decoder: Any, path: str) -> Any:
    try:
        return pocketsphinx.NGramModel(decoder.config, decoder.logmath, path)
    except (RuntimeError, ValueError):
        raise ConfigError(f"language_model: pocketsphinx cannot read {path!r}") from None


def _read(text_or_path: str) -> str:
    if "\n" in text_or_path.strip() or text_or_path.startswith("#JSGF"):
        return text_or_path
    try:
        with open(text_or_path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{text_or_path[:80]!r}: cannot be read: {error.strerror}") from None


def _read_domain(grammar: str | None, language_model: str | None) -> Domain | str:
    """Return what is to be heard, or the path of a ready language model, such as the general one."""
    if grammar is not None:
        return _read_grammar(grammar)
    if language_model is None:
        return str(pocketsphinx.get_model_path(_GENERAL_MODEL))
    if "\n" not in language_model.strip():
        if not os.path.isfile(language_model):
            raise ConfigError(f"language_model: expected a file or lines of text, found {language_model[:80]!r}")
        if language_model.endswith(_LANGUAGE_MODELS):
            return language_model
    text = sentences(_read(language_model))
    if not text:
        raise ConfigError(f"language_model: expected sentences, found none in {language_model[:80]!r}")
    words = {word for sentence in text for word in sentence}
    return Domain(False, build_arpa(text), _dictionary(words, "language_model", _decoder()))


def _read_grammar(grammar: str) -> Domain:
    """Return a grammar with the loop of sounds beside it."""
    text = _read(grammar)
    named = _PUBLIC_RULE.search(_COMMENT.sub("", text))
    if named is None:
        raise ConfigError(f"grammar: expected JSGF with a name and a public rule, found {text[:80]!r}")
    with _Written(text, ".jsgf") as path:
        try:
            jsgf = pocketsphinx.Jsgf(path)
        except (RuntimeError, ValueError):
            raise ConfigError(f"grammar: not JSGF that pocketsphinx can read: {text[:80]!r}") from None
    decoder = _decoder()
    # The weights are raised to the decoder's `lw` when it reads the file: not here too.
    fsg = jsgf.build_fsg(jsgf.get_rule(f"{named[1]}.{named[2]}"), decoder.logmath, 1.0)
    with _Written("", ".fsg") as path:
        fsg.writefile(path)
        lines = _read(path).lower().splitlines()
    arcs = [line.split() for line in lines if line.startswith("transition ")]
    words = {arc[4] for arc in arcs if len(arc) > 4}
    sounds = "".join(f"{_sound_word(sound)} {sound}\n" for sound in _SOUNDS)
    return Domain(True, _with_sounds(lines, arcs), _dictionary(words, "grammar", decoder) + sounds)


def _with_sounds(lines: list[str], arcs: list[list[str]]) -> str:
    head = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(("num_", "start_", "final_"))}
    start, final, loop = head["start_state"], head["final_state"], head["num_states"]
    sounds = [_sound_word(sound) for sound in _SOUNDS]
    text = [
        "FSG_BEGIN <grammar>",
        f"NUM_STATES {loop + 1}",
        f"START_STATE {start}",
        f"FINAL_STATE {final}",
        *(" ".join(["TRANSITION", *arc[1:]]) for arc in arcs),
        *(f"TRANSITION {start} {loop} {SOUND_CHANCE} {sound}" for sound in sounds),
        *(f"TRANSITION {loop} {loop} {SOUND_CHANCE} {sound}" for sound in sounds),
        f"TRANSITION {loop} {final} 1.0",
        "FSG_END",
    ]
    return "\n".join([*text, ""])


def _sound_word(sound: str) -> str:
    return f"+{sound.lower()}+"


def _dictionary(words: set[str], where: str, decoder: Any) -> str:
    """Return the entries of these words, with their variants, as a dictionary file."""
    unknown = sorted(word for word in words if decoder.lookup_word(word) is None)
    if unknown:
        shown = ", ".join(unknown[:_WORDS_SHOWN]) + (" ..." if len(unknown) > _WORDS_SHOWN else "")
        raise ConfigError(f"{where}: words that are not in the pronouncing dictionary: {shown}")
    entries = []
    for word in sorted(words):
        variant, n = word, 1
        while (sounds := decoder.lookup_word(variant)) is not None:
            entries.append(f"{variant} {sounds}\n")
            n += 1
            variant = f"{word}({n})"
    return "".join(entries)
