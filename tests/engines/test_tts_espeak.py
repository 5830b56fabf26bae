"""The embedded voice, for real: espeak-ng in its worker process."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import numpy as np
import pytest

from media_server.conversation import Word
from media_server.engines.protocols import SpeechChunk, Tts, Voice
from media_server.engines.tts_espeak import PIECE_CHARACTERS, EspeakTts
from media_server.engines.tts_espeak_model import SpeechCutter
from media_server.errors import EngineError

pytestmark = pytest.mark.models

SIGNS = 'Well — "yes", I paid 1,234 dollars (really)! A & B, <b>not</b> [[h@l]] &amp; so on ... ok?'


@asynccontextmanager
async def loaded() -> AsyncGenerator[EspeakTts, None]:
    """Run the voice as the app does."""
    tts = EspeakTts()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tts.run())
        try:
            await tts.load()
            yield tts
        finally:
            await tts.close()


async def speak(tts: Tts, text: str, voice: Voice | None = None) -> list[SpeechChunk]:
    """Return the whole speech of a text."""
    return [chunk async for chunk in tts.speak(text, voice or Voice())]


def words_of(chunks: list[SpeechChunk]) -> list[Word]:
    """Return the words of all chunks."""
    return [word for chunk in chunks for word in chunk.words]


def duration_ms(chunks: list[SpeechChunk], rate_hz: int) -> float:
    """Return how long the speech lasts."""
    return sum(len(chunk.pcm) for chunk in chunks) * 1000 / rate_hz


async def test_a_sentence_becomes_sound_in_small_chunks_at_the_librarys_rate() -> None:
    async with loaded() as tts:
        chunks = await speak(tts, "What would you like to drink today?")

        assert tts.rate_hz == 22_050
        assert 1200 < duration_ms(chunks, tts.rate_hz) < 3000
        assert all(60 <= len(chunk.pcm) * 1000 / tts.rate_hz <= 201 for chunk in chunks[:-1])
        assert 1000 < np.abs(np.concatenate([chunk.pcm for chunk in chunks])).max() < 32_767


async def test_speech_begins_at_once_and_ends_with_a_short_pause() -> None:
    async with loaded() as tts:
        pcm = np.concatenate([chunk.pcm for chunk in await speak(tts, "That is all.")])

        loud = np.flatnonzero(np.abs(pcm) > 60)
        assert loud[0] < tts.rate_hz * 0.03
        assert tts.rate_hz * 0.14 < len(pcm) - loud[-1] < tts.rate_hz * 0.17


@pytest.mark.parametrize(
    "text",
    ["Hello there, you.", SIGNS, "Zażółć gęślą 你好 jaźń 🙂 hello", " (begin) and\nend — ", "Dr. Smith's 25 - 30."],
)
async def test_the_words_hold_all_the_text_in_order_and_their_times_rise(text: str) -> None:
    async with loaded() as tts:
        chunks = await speak(tts, text)

        words = words_of(chunks)
        assert "".join("".join(word.text for word in words).split()) == "".join(text.split())
        at = 0
        for word in words:
            at = text.index(word.text, at) + len(word.text)
        times = [time for word in words for time in (word.start_ms, word.end_ms)]
        assert times == sorted(times)
        assert times[-1] <= duration_ms(chunks, tts.rate_hz)


async def test_a_word_travels_no_later_than_its_sound() -> None:
    async with loaded() as tts:
        sent_ms = 0.0
        async for chunk in tts.speak("One two three four five six seven eight nine ten.", Voice()):
            assert all(word.start_ms >= sent_ms - 1 for word in chunk.words)
            sent_ms += len(chunk.pcm) * 1000 / tts.rate_hz


async def test_a_long_text_is_spoken_whole_with_times_that_go_on() -> None:
    text = "This is one of many sentences. " * (2 * PIECE_CHARACTERS // 30)

    async with loaded() as tts:
        chunks = await speak(tts, text)

        words = words_of(chunks)
        assert " ".join(word.text for word in words) == text.strip()
        assert [word.start_ms for word in words] == sorted(word.start_ms for word in words)
        assert words[-1].end_ms == pytest.approx(duration_ms(chunks, tts.rate_hz) - 150, abs=30)


@pytest.mark.parametrize("text", ["", " \n", "x" * (3 * PIECE_CHARACTERS)])
async def test_odd_texts_are_no_trouble(text: str) -> None:
    async with loaded() as tts:
        assert "".join(word.text for word in words_of(await speak(tts, text))) == text.strip()


async def test_markup_is_read_and_not_obeyed() -> None:
    async with loaded() as tts:
        plain = duration_ms(await speak(tts, "wait now"), tts.rate_hz)
        marked = duration_ms(await speak(tts, 'wait <break time="5s"/> now'), tts.rate_hz)

        assert plain < marked < plain + 4000


async def test_twice_the_speed_takes_about_half_the_time() -> None:
    async with loaded() as tts:
        slow = duration_ms(await speak(tts, "What would you like to drink today?"), tts.rate_hz)
        fast = duration_ms(await speak(tts, "What would you like to drink today?", Voice(speed=2)), tts.rate_hz)

        assert 0.4 < fast / slow < 0.65


async def test_voices_differ_and_do_not_stick() -> None:
    async with loaded() as tts:
        first = await speak(tts, "Hello.")
        other = await speak(tts, "Hello.", Voice("en-us+f2"))
        german = await speak(tts, "Hello.", Voice(language="de"))
        again = await speak(tts, "Hello.")

        sounds = [b"".join(chunk.pcm.tobytes() for chunk in chunks) for chunks in (first, other, german)]
        assert len(set(sounds)) == 3
        assert duration_ms(again, tts.rate_hz) == pytest.approx(duration_ms(first, tts.rate_hz), rel=0.05)


@pytest.mark.parametrize("name", ["nosuch", "en-us+nosuch", "../../etc/passwd", "en-us+../en", ""])
async def test_an_unknown_voice_is_named_and_the_next_request_is_served(name: str) -> None:
    async with loaded() as tts:
        with pytest.raises(EngineError, match=f"espeak-ng has no voice '{name[:4]}"):
            await speak(tts, "Hello.", Voice(name))

        assert await speak(tts, "Hello.")


async def test_many_speak_at_a_time_and_none_hears_another() -> None:
    texts = [f"This is number {number}." for number in range(20)]

    async with loaded() as tts:
        spoken = await asyncio.gather(*(speak(tts, text) for text in texts))

        assert [" ".join(word.text for word in words_of(chunks)) for chunks in spoken] == texts


async def test_speech_that_is_cut_leaves_the_voice_free() -> None:
    async with loaded() as tts:
        async with aclosing(tts.speak("one two three four " * 20, Voice())) as chunks:
            await anext(chunks)

        assert " ".join(word.text for word in words_of(await speak(tts, "And now this."))) == "And now this."


async def test_a_killed_worker_costs_its_replies_and_the_next_is_spoken() -> None:
    async with loaded() as tts:
        os.kill(tts.process_ids[0], signal.SIGKILL)
        with pytest.raises(EngineError, match="the worker ended"):
            await speak(tts, "Hello.")

        assert await speak(tts, "Hello.")
        assert tts.state == "up"


def test_a_cut_stops_the_cutter() -> None:
    sent = []

    def send(note: dict[str, object], body: bytes) -> bool:
        sent.append(body)
        return False

    cutter = SpeechCutter("one two three", 1000, send)

    assert cutter.take(b"\1\0" * 200, [(0, 0)])
    assert not cutter.take(b"\1\0" * 200, [(4, 200)])
    cutter.finish()
    assert len(sent) == 1


def test_a_short_word_travels_with_the_next() -> None:
    sent = []

    def send(note: dict[str, object], body: bytes) -> bool:
        sent.append((note["words"], len(body) // 2))
        return True

    cutter = SpeechCutter("a tea", 1000, send)
    cutter.take(b"\1\0" * 250, [(0, 0), (2, 40)])
    cutter.finish()

    assert sent == [([("a", 0, 40), ("tea", 40, 250)], 125), ([], 125)]
