"""Real speech to measure with. It lies beside the project, not in it: where it is missing, what needs it skips."""

import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from media_server.audio.chunk import Pcm
from media_server.caller.microphone import MICROPHONE_HZ
from media_server.caller.sound_file import read_sound
from media_server.config import ROOT

FOLDER = Path(os.environ.get("PARLEY_SPEECH", ROOT.parent / "shared" / "speech"))
MISSING = f"the speech clips are not there: {FOLDER} (PARLEY_SPEECH names another folder)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One recording.

    Attributes:
        set: which collection it belongs to.
        text: what is said; "" for what is not speech; None where nobody wrote it down.
        start_s, end_s: of the speech in it, by forced alignment; None where nobody measured.
        slots: the labels of an order.
    """

    path: Path
    set: str
    text: str | None
    seconds: float
    start_s: float | None = None
    end_s: float | None = None
    slots: dict[str, str] = field(default_factory=dict)

    def sound(self) -> Pcm:
        """Return the recording: int16, shape (n,), at the microphone's rate."""
        return read_sound(self.path, MICROPHONE_HZ)


@cache
def clips(of: str) -> tuple[Clip, ...]:
    """Return the clips of a set, in the order of the manifest; none where the folder is missing."""
    manifest = FOLDER / "manifest.jsonl"
    if not manifest.is_file():
        return ()
    found = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["set"] == of:
            found.append(
                Clip(
                    path=FOLDER / entry["file"],
                    set=of,
                    text=entry["text"],
                    seconds=entry["seconds"],
                    start_s=entry.get("speech_start"),
                    end_s=entry.get("speech_end"),
                    slots=entry.get("slots") or {},
                )
            )
    return tuple(found)
