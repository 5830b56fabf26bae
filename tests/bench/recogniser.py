"""How much of a spoken order does the embedded recogniser alone understand, and what does it make of noise?

Decodes with the grammar of the scenario, from 0.3 s before the speech to 0.3 s after it, as an endpointed turn would be
cut; then the noises, which should give no words. What `orders` loses against this is lost on the way.
"""

import time
from typing import Any

from media_server.audio.chunk import HEARING_HZ
from media_server.caller.sound_file import read_sound
from media_server.config import ROOT
from media_server.engines.asr_sphinx_model import SphinxModel
from media_server.engines.scenario import read_scenario
from tests.bench.table import show
from tests.orders import count_right
from tests.speech import MISSING, Clip, clips

MARGIN_S = 0.3


async def run() -> None:
    """Decode every order and every noise."""
    if not clips("barista"):
        print(f"\nrecogniser: skipped: {MISSING}")
        return
    scenario = read_scenario(ROOT / "config" / "scenarios" / "coffee.toml")
    model = SphinxModel({"grammar": scenario.grammar(), "language_model": None, "warm": 1})
    begun_s = time.process_time()
    orders = [(clip, _recognise(model, clip)) for clip in clips("barista")]
    cpu_s = time.process_time() - begun_s
    noises = [(clip, _recognise(model, clip)) for clip in clips("negatives")]
    rights = [count_right(clip, heard) for clip, heard in orders]
    show(
        "recogniser",
        "Orders and noises, the recogniser alone",
        [
            _row("slots understood", sum(rights), sum(len(clip.slots) for clip, _ in orders)),
            _row(
                "whole orders",
                sum(right == len(clip.slots) for right, (clip, _) in zip(rights, orders, strict=True)),
                len(orders),
            ),
            _row("noises that gave words", sum(bool(heard) for _, heard in noises), len(noises)),
            _row("CPU-s, of s of speech", cpu_s, sum(_end_s(clip) - _start_s(clip) for clip, _ in orders)),
        ],
        orders=[{"clip": clip.path.name, "said": clip.text, "heard": heard} for clip, heard in orders],
        noises=[{"clip": clip.path.name, "heard": heard} for clip, heard in noises],
    )


def _row(name: str, figure: float, of: float) -> dict[str, Any]:
    return {"": name, "figure": figure, "of": of, "share": figure / of}


def _start_s(clip: Clip) -> float:
    return max(0.0, (clip.start_s or 0.0) - MARGIN_S)


def _end_s(clip: Clip) -> float:
    return min(clip.seconds, (clip.end_s or clip.seconds) + MARGIN_S)


def _recognise(model: SphinxModel, clip: Clip) -> str:
    """Return the final words."""
    notes: list[dict[str, Any]] = []

    def keep(note: dict[str, Any], _: bytes) -> bool:
        notes.append(note)
        return True

    pcm = read_sound(clip.path, HEARING_HZ)[int(_start_s(clip) * HEARING_HZ) : int(_end_s(clip) * HEARING_HZ)]
    stream = model.open({})
    stream.feed(pcm.tobytes(), keep)
    stream.finish(keep)
    stream.close()
    return " ".join(word for word, *_ in notes[-1]["words"])
