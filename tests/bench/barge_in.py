"""How soon does the agent fall silent when the caller interrupts it, and what else silences it?"""

import asyncio
import math
from dataclasses import dataclass

from media_server.caller.client import CallClient
from tests.bench.table import row, show
from tests.servers import server, talkative_scenario
from tests.speech import MISSING, Clip, clips

AT_A_TIME = 2
SPEAKING_S = 0.5
"""How long the agent has been speaking when the clip begins."""

EARLY_MS = -50.0
"""A duck or cut so long before the labelled onset was not for that speech."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One clip played during a reply. Times in ms from the sending of the labelled onset; None: it did not happen.

    Attributes:
        duck_ms: the event came that says that the reply is quieter. How loud speech is changes with every word: its
            level does not tell a duck.
        cut_ms: the event came that says that the playout was emptied.
        silence_ms: the first frame came with nothing to hear in it, after the last one of the cut reply that had.
    """

    clip: Clip
    duck_ms: float | None
    cut_ms: float | None
    silence_ms: float | None
    server: dict[str, float | None]


async def run() -> None:
    """Interrupt a long reply with every clip, and play every noise into one."""
    speech = [clip for clip in clips("barista") if clip.start_s is not None]
    if not speech:
        print(f"\nbarge-in: skipped: {MISSING}")
        return
    toml = f'[llm]\nscenario = "{talkative_scenario()}"\n[call]\ngreeting_after_ms = 0\n'
    async with server(toml) as url:
        free = asyncio.Semaphore(AT_A_TIME)
        cuts = await asyncio.gather(*(_interrupt(url, clip, free) for clip in speech))
        noises = await asyncio.gather(*(_interrupt(url, clip, free) for clip in clips("negatives")))
    _show(list(cuts), list(noises))


async def _interrupt(url: str, clip: Clip, free: asyncio.Semaphore) -> Cut:
    onset_s = clip.start_s or 0.0
    async with free, CallClient(url) as client:
        await client.wait_for(lambda event: event["type"] == "output_audio_buffer.started", 10)
        await asyncio.sleep(SPEAKING_S)
        mark = client.n_received
        ended_s = await client.play(clip.sound())
        began_s = ended_s - clip.seconds
        await asyncio.sleep(0.5)
        silent_s = _first_silence_s(client, mark)
        at: dict[str, float] = {}
        measured: dict[str, float | None] = {}
        for received in client.received[mark:]:
            name = received.type
            if name == "parley.duck" and not received.event["ducked"]:
                at.pop("parley.duck", None)  # a noise before the speech: the duck that counts comes later
            elif name not in at:
                at[name] = received.at_s
            if name == "parley.barge_in" and not measured:
                measured = {key: received.event[key] for key in ("duck_ms", "cut_ms", "silence_ms", "ear_ms")}
    return Cut(
        clip=clip,
        duck_ms=_since(at.get("parley.duck"), began_s + onset_s),
        cut_ms=_since(at.get("output_audio_buffer.cleared"), began_s + onset_s),
        silence_ms=_since(silent_s, began_s + onset_s),
        server=measured,
    )


def _first_silence_s(client: CallClient, mark: int) -> float | None:
    """Return when the first silent frame came after the last sound of the cut reply; None: not cut, or still heard."""
    events = client.received[mark:]
    cleared_s = next((received.at_s for received in events if received.type == "output_audio_buffer.cleared"), None)
    if cleared_s is None:
        return None
    # The answer to the clip is no part of the cut reply; it is announced before it sounds.
    answers = (received.at_s for received in events if received.type == "response.created")
    until_s = next((at_s for at_s in answers if at_s >= cleared_s), math.inf)
    last_s = client.ear.last_sound_s(until_s) or 0.0
    return next((frame.at_s for frame in client.ear.frames if last_s < frame.at_s <= until_s), None)


def _since(at_s: float | None, onset_s: float) -> float | None:
    return None if at_s is None else (at_s - onset_s) * 1000


def _show(cuts: list[Cut], noises: list[Cut]) -> None:
    early = [cut for cut in cuts if cut.cut_ms is not None and cut.cut_ms < EARLY_MS]
    good = [cut for cut in cuts if cut not in early]
    ducks = [cut.duck_ms for cut in good if cut.duck_ms is not None and cut.duck_ms >= EARLY_MS]
    silences = [cut.silence_ms for cut in good if cut.silence_ms is not None]
    not_silent = [cut.clip.path.name for cut in good if cut.cut_ms is not None and cut.silence_ms is None]
    from_vad = [cut.server["silence_ms"] or 0.0 for cut in good if cut.server]
    false_cuts = [cut.clip for cut in noises if cut.cut_ms is not None]
    minutes = sum(cut.clip.seconds for cut in noises) / 60
    show(
        "barge_in",
        "Barge-in, barista clips played during a reply, ms from the labelled onset leaving the caller",
        [
            row("the event that says quieter", ducks, "p95 <= 300"),
            row("first silent frame at the caller's ear", silences, "p50 <= 250, p95 <= 400"),
            row("silence, from the VAD's own onset", from_vad),
        ],
        not_cut=[cut.clip.path.name for cut in good if cut.cut_ms is None],
        not_silent=not_silent,
        cut_before_the_onset=[cut.clip.path.name for cut in early],
        false_cuts=[clip.path.name for clip in false_cuts],
        negatives=len(noises),
        negatives_minutes=minutes,
        each=[
            {"clip": cut.clip.path.name, "duck_ms": cut.duck_ms, "silence_ms": cut.silence_ms}
            for cut in [*cuts, *noises]
        ],
    )
    not_cut = sum(cut.cut_ms is None for cut in good)
    print(
        f"  not cut: {not_cut} of {len(cuts)}; cut, but not silent: {len(not_silent)}; "
        f"cut before the labelled onset: {len(early)}"
    )
    print(f"  false cuts: {len(false_cuts)} of {len(noises)} noises, {minutes:.1f} minutes during replies")
