from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np

from media_server.conversation import Word
from media_server.engines.protocols import SpeechChunk, Voice
from media_server.engines.tts_memory import RememberingTts

VOICE = Voice()


class HumTts:
    """Hums half a second at 16 kHz for anything, in two chunks, and counts how often it was asked."""

    name, why, rate_hz = "hum", "a test", 16_000

    def __init__(self) -> None:
        self.n_asked = 0

    async def load(self) -> None: ...

    async def close(self) -> None: ...

    async def speak(self, text: str, voice: Voice) -> AsyncGenerator[SpeechChunk, None]:
        self.n_asked += 1
        hum = (3_000 * np.sin(np.arange(4_000) * 0.1)).astype(np.int16)
        yield SpeechChunk(hum, (Word(text, 0, 250),))
        yield SpeechChunk(hum)


async def spoken(tts: RememberingTts, text: str) -> list[SpeechChunk]:
    return [chunk async for chunk in tts.speak(text, VOICE)]


async def test_what_was_said_before_comes_at_once_and_sounds_the_same() -> None:
    hum = HumTts()
    tts = RememberingTts(hum, limit_mb=1)

    first, (again,) = await spoken(tts, "Hello."), await spoken(tts, "Hello.")

    made = np.concatenate([chunk.pcm for chunk in first])
    assert len(made) == 12_000  # half a second at 24 kHz
    assert np.array_equal(again.pcm[:12_000], made)
    assert again.clip is not None
    assert again.words == first[0].words
    assert hum.n_asked == 1


async def test_another_voice_is_another_sound() -> None:
    hum = HumTts()
    tts = RememberingTts(hum, limit_mb=1)

    await spoken(tts, "Hello.")
    async with aclosing(tts.speak("Hello.", Voice(speed=1.5))) as chunks:
        _ = [chunk async for chunk in chunks]

    assert hum.n_asked == 2


async def test_what_nobody_heard_to_its_end_is_not_remembered() -> None:
    hum = HumTts()
    tts = RememberingTts(hum, limit_mb=1)
    async with aclosing(tts.speak("Hello.", VOICE)) as chunks:
        await anext(chunks)

    await spoken(tts, "Hello.")

    assert hum.n_asked == 2


async def test_when_the_memory_is_full_what_was_not_said_for_longest_goes() -> None:
    hum = HumTts()
    tts = RememberingTts(hum, limit_mb=0.05)  # half a second takes 24 kB
    for text in ("one", "two", "one", "three"):
        await spoken(tts, text)
    assert hum.n_asked == 3

    await spoken(tts, "one")
    assert hum.n_asked == 3

    await spoken(tts, "two")
    assert hum.n_asked == 4


async def test_without_room_nothing_is_remembered() -> None:
    hum = HumTts()
    tts = RememberingTts(hum, limit_mb=0)

    await spoken(tts, "Hello.")
    await spoken(tts, "Hello.")

    assert hum.n_asked == 2
