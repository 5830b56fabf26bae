"""espeak-ng inside its worker process, through ctypes.

The library is not thread-safe and keeps its voice in global state: one process, one synthesis at a time. It is under
the GPL-3, which is one more reason for a process of its own.

It makes sound some hundred times faster than it is heard, and says with each block which words begin in it. The sound
of a word is sent when the next one begins, so that a word's times always travel with its first sound.
"""

import ctypes
import re
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import espeakng_loader

from media_server.engines.workers.child import Send

# The names and numbers of espeak-ng's `speak_lib.h`.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_ENDPAUSE = 0x1000
_POSITION_CHARACTER = 1
_PARAMETER_RATE = 1
_PARAMETER_VOLUME = 2
_EVENT_LIST_TERMINATED = 0
_EVENT_WORD = 1

WORDS_PER_MINUTE = 175
SLOWEST, FASTEST = 80, 450

DEFAULT_VOICE = "en-us+klatt4"
"""The clearest of 23 to a recogniser: it misheard 20 % of the words, en-us 64 %, the others 25-98 %."""

VOLUME = 80
"""In percent of the library's own, at which the default voice clips its loudest vowels."""

CHUNK_MIN_MS = 60
CHUNK_MAX_MS = 200
LAST_PAUSE_MS = 150
"""A sentence ends with a pause of 300 ms otherwise."""

_VARIANT_FOLDER = Path("voices") / "!v"


class _Voice(ctypes.Structure):
    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # pairs of a priority byte and a string, after the last one a 0
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


class _EventId(ctypes.Union):
    _fields_: ClassVar = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))

Take: TypeAlias = Callable[[bytes, list[tuple[int, int]]], bool]
"""Takes a block of sound and the words that begin in it (place in the text, sample); returns whether more is wanted."""


class EspeakModel:
    """The library, ready to speak."""

    def __init__(self, options: dict[str, Any]) -> None:
        data = espeakng_loader.get_data_path()
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        rate_hz = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), _INITIALIZE_DONT_EXIT)
        if rate_hz <= 0:
            raise RuntimeError(f"espeak-ng cannot start with the data in {data!r}")
        self.about = {"rate_hz": rate_hz}
        self._voices = self._list_voices()
        self._variants = {path.name for path in (Path(data) / _VARIANT_FOLDER).iterdir()}
        self._voice = b""
        self._take: Take | None = None
        self._error: Exception | None = None
        self._callback = _Callback(self._called)  # kept: the library has only its address
        self._library.espeak_SetSynthCallback(self._callback)
        self.speak("Ready.", self.find_voice("default", "en"), 1.0, lambda pcm, events: True)

    def open(self, request: dict[str, Any]) -> "EspeakStream":
        """Begin a text. Raises ValueError if there is no such voice."""
        voice = self.find_voice(request["voice"], request["language"])
        return EspeakStream(self, request["text"], voice, request["speed"])

    def tidy(self) -> None:
        """Keep all: there is one voice at a time."""

    def find_voice(self, name: str, language: str) -> bytes:
        """Return how the library calls a voice: by name, language or identifier, with a variant after `+`."""
        if name == "default":
            name = DEFAULT_VOICE if language.lower() in {"en", "en-us"} else language
        base, plus, variant = name.partition("+")
        identifier = self._voices.get(base.lower()) or self._voices.get(base.lower().partition("-")[0])
        if identifier is None or (plus and variant not in self._variants):
            raise ValueError(f"espeak-ng has no voice {name[:80]!r}; it has 'default', 'en-us', 'de', 'en-us+f2' ...")
        return f"{identifier}{plus}{variant}".encode()

    def speak(self, text: str, voice: bytes, speed: float, take: Take) -> None:
        """Synthesise, giving each block of sound to `take` until it declines."""
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(voice) != 0:
                raise RuntimeError(f"espeak-ng cannot load its voice {voice.decode()!r}")
            self._voice = voice
        words_per_minute = min(max(round(WORDS_PER_MINUTE * speed), SLOWEST), FASTEST)
        self._library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PARAMETER_VOLUME, VOLUME, 0)
        self._take, self._error = take, None
        encoded = text.encode(errors="replace") + b"\0"
        size = ctypes.c_size_t(len(encoded))
        flags = _CHARS_UTF8 | _ENDPAUSE  # not SSML: a "<" in the text is a "<"
        self._library.espeak_Synth(encoded, size, 0, _POSITION_CHARACTER, 0, flags, None, None)
        self._take = None
        if self._error is not None:
            raise self._error

    def _called(self, wav: int | None, n_samples: int, events: Any) -> int:
        """Take a block of sound from the library; 1 stops it."""
        try:
            found = []
            at = 0
            while events[at].type != _EVENT_LIST_TERMINATED:
                if events[at].type == _EVENT_WORD:
                    found.append((events[at].text_position - 1, events[at].sample))
                at += 1
            pcm = ctypes.string_at(wav, 2 * n_samples) if wav and n_samples > 0 else b""
            return 0 if self._take is not None and self._take(pcm, found) else 1
        except Exception as error:  # what is raised here would end in C, unseen
            self._error = error
            return 1

    def _list_voices(self) -> dict[str, str]:
        """Return the identifiers of the voices by name, by language and by themselves, in lower case."""
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        listed = self._library.espeak_ListVoices(None)
        found: dict[str, str] = {}
        at = 0
        while listed[at]:
            voice = listed[at].contents
            identifier = voice.identifier.decode()
            for key in (*_languages(voice.languages), identifier, voice.name.decode()):
                found.setdefault(key.lower(), identifier)
            at += 1
        return found


class EspeakStream:
    """One text on its way to sound."""

    def __init__(self, model: EspeakModel, text: str, voice: bytes, speed: float) -> None:
        self._model = model
        self._text = text.replace("\0", " ")
        self._voice = voice
        self._speed = speed

    def feed(self, body: bytes, send: Send) -> None:
        """There is no input but the request."""

    def finish(self, send: Send) -> None:
        """Speak."""
        cutter = SpeechCutter(self._text, self._model.about["rate_hz"], send)
        self._model.speak(self._text, self._voice, self._speed, cutter.take)
        cutter.finish()

    def close(self) -> None:
        """Nothing is held."""


class SpeechCutter:
    """Cuts a stream of sound and word events into chunks that begin with a word.

    A word is what stands in the text from its first letter up to the next word's, less the space; what the library does
    not speak (a dash, a bracket) belongs to the word before it.
    """

    def __init__(self, text: str, rate_hz: int, send: Send) -> None:
        self._text = text
        self._rate_hz = rate_hz
        self._send = send
        self._starts = [match.start() for match in re.finditer(r"\S+", text)]
        self._pcm = bytearray()
        self._sent_samples = 0
        self._text_at = 0
        self._word_samples = 0
        self._token = -1
        self._words: list[tuple[str, int, int]] = []
        self._wanted = True

    def take(self, pcm: bytes, events: list[tuple[int, int]]) -> bool:
        """Take a block and return whether more is wanted."""
        self._pcm += pcm
        for position, sample in events:
            token = bisect_right(self._starts, max(position, 0)) - 1
            if token > self._token:
                if self._token >= 0:
                    self._end_word(self._starts[token], sample)
                self._token = token
                self._word_samples = sample
        return self._wanted

    def finish(self) -> None:
        """Send the rest, with no longer a pause after it than is natural."""
        if not self._wanted:
            return
        sounding = _sounding_samples(self._pcm)
        del self._pcm[2 * (sounding + self._samples(LAST_PAUSE_MS)) :]
        if self._starts:
            self._end_word(len(self._text), self._sent_samples + len(self._pcm) // 2)
        self._flush(len(self._pcm) // 2)

    def _end_word(self, text_end: int, next_samples: int) -> None:
        n_samples = max(0, min(next_samples - self._sent_samples, len(self._pcm) // 2))
        sounding = self._sent_samples + _sounding_samples(self._pcm[: 2 * n_samples])
        end_samples = max(self._word_samples, min(next_samples, sounding))
        written = self._text[self._text_at : text_end].strip()
        self._words.append((written, self._ms(self._word_samples), self._ms(end_samples)))
        self._text_at = text_end
        if n_samples >= self._samples(CHUNK_MIN_MS):
            self._flush(n_samples)

    def _flush(self, n_samples: int) -> None:
        """Send that much of the sound in chunks of even length, the words with the first."""
        n_chunks = -(-n_samples // self._samples(CHUNK_MAX_MS))
        for at in range(n_chunks):
            start, end = n_samples * at // n_chunks, n_samples * (at + 1) // n_chunks
            self._wanted = self._wanted and self._send({"words": self._words}, bytes(self._pcm[2 * start : 2 * end]))
            self._words = []
        del self._pcm[: 2 * n_samples]
        self._sent_samples += n_samples

    def _samples(self, ms: int) -> int:
        return ms * self._rate_hz // 1000

    def _ms(self, samples: int) -> int:
        return samples * 1000 // self._rate_hz


def _sounding_samples(pcm: bytearray) -> int:
    """Return how many samples there are up to the last that is not zero."""
    return (len(pcm.rstrip(b"\0")) + 1) // 2


def _languages(address: int) -> list[str]:
    found = []
    while ctypes.string_at(address, 1) != b"\0":
        language = ctypes.string_at(address + 1)
        found.append(language.decode())
        address += len(language) + 2
    return found
