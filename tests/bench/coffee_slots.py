"""How many slots of real, spoken coffee orders are recognised: python -m tests.bench.coffee_slots [FOLDER OF SPEECH]

Decodes with the embedded recogniser and the grammar of the scenario, from 0.3 s before the speech to 0.3 s after it, as
an endpointed turn would be cut; then the noises, which should give no words.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from media_server.engines.asr_sphinx_model import SphinxModel
from media_server.engines.scenario import read_scenario

ROOT = Path(__file__).parents[2]
RATE_HZ = 16_000
MARGIN_S = 0.3
LABELS = {
    "coffeeDrink": "drink",
    "size": "size",
    "roast": "roast",
    "numberOfShots": "shots",
    "milkAmount": "milk",
    "sugarAmount": "sugar",
}


def read_pcm(path: Path) -> bytes:
    """Return a clip as 16 kHz mono int16."""
    resampler = av.AudioResampler("s16", "mono", RATE_HZ)
    with av.open(str(path)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]]).tobytes()


def recognise(model: SphinxModel, pcm: bytes) -> str:
    """Return the final words."""
    notes: list[dict[str, Any]] = []

    def keep(note: dict[str, Any], _: bytes) -> bool:
        notes.append(note)
        return True

    stream = model.open({})
    stream.feed(pcm, keep)
    stream.finish(keep)
    stream.close()
    return " ".join(word for word, *_ in notes[-1]["words"])


def main() -> None:
    """Print the figures."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PARLEY_SPEECH", ROOT.parent / "shared/speech"))
    clips = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    scenario = read_scenario(ROOT / "config" / "scenarios" / "coffee.toml")
    model = SphinxModel({"grammar": scenario.grammar(), "language_model": None, "warm": 1})
    found = wanted = whole = orders = 0
    speech_s = cpu_s = 0.0
    for clip in (clip for clip in clips if clip["set"] == "barista"):
        start, end = max(0.0, clip["speech_start"] - MARGIN_S), clip["speech_end"] + MARGIN_S
        pcm = read_pcm(folder / clip["file"])[int(start * RATE_HZ) * 2 : int(end * RATE_HZ) * 2]
        before_s = time.process_time()
        heard = recognise(model, pcm)
        cpu_s += time.process_time() - before_s
        speech_s += end - start
        slots = scenario.understand(heard).slots
        right = sum(slots.get(LABELS[label]) == value for label, value in clip["slots"].items())
        found, wanted, orders = found + right, wanted + len(clip["slots"]), orders + 1
        whole += right == len(clip["slots"])
        if right < len(clip["slots"]):
            print(f"said   {clip['text']}\nheard  {heard}\n")
    noises = [clip for clip in clips if clip["set"] == "negatives"]
    words = [heard for clip in noises if (heard := recognise(model, read_pcm(folder / clip["file"])))]
    print(f"{found} of {wanted} slots, {whole} of {orders} whole orders, {cpu_s / speech_s:.3f} CPU-s per s")
    print(f"{len(words)} of {len(noises)} noises gave words: {words}")


if __name__ == "__main__":
    main()
