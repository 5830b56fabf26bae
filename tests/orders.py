"""Whole orders through a running server: what of the labelled slots is understood, and what is heard in noise."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from media_server.caller.client import CallClient
from media_server.config import ROOT
from media_server.engines.scenario import read_scenario
from tests.speech import Clip

TAIL_S = 1.2
"""Silence after a clip: the endpointing's, and a final's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a call made of one clip."""

    clip: Clip
    turns: int
    replies: int
    text: str
    right: int
    labelled: int


async def send_clips(url: str, clips: Sequence[Clip], *, at_a_time: int) -> list[Heard]:
    """Play each clip into a call of its own, so many at a time, and return what was heard, in order."""
    free = asyncio.Semaphore(at_a_time)

    async def send(clip: Clip) -> Heard:
        async with free:
            return await send_clip(url, clip)

    return list(await asyncio.gather(*(send(clip) for clip in clips)))


async def send_clip(url: str, clip: Clip) -> Heard:
    """Play a clip into a call and return what was heard."""
    async with CallClient(url) as client:
        await client.play(clip.sound())
        await asyncio.sleep(TAIL_S)
        types = [received.type for received in client.received]
        completed = [
            received.event["transcript"]
            for received in client.received
            if received.type == "conversation.item.input_audio_transcription.completed"
        ]
    text = " ".join(completed).strip()
    return Heard(
        clip=clip,
        turns=types.count("input_audio_buffer.speech_stopped"),
        replies=types.count("response.created"),
        text=text,
        right=count_right(clip, text),
        labelled=len(clip.slots),
    )


LABELS = {
    "coffeeDrink": "drink",
    "milkAmount": "milk",
    "sugarAmount": "sugar",
    "numberOfShots": "shots",
    "size": "size",
    "roast": "roast",
}
"""The labels of the recordings, and the slots of the scenario."""


def count_right(clip: Clip, text: str) -> int:
    """Return how many of a clip's labelled slots are understood from `text` as from the labels themselves."""
    scenario = read_scenario(ROOT / "config" / "scenarios" / "coffee.toml")
    understood = scenario.understand(text).slots
    right = 0
    for label, spoken in clip.slots.items():
        slot = LABELS[label]
        wanted = scenario.understand(spoken).slots.get(slot, spoken)
        right += understood.get(slot) == wanted
    return right
