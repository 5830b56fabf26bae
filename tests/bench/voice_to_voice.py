"""How long after the caller's last word does the answer begin, and where does the time go?"""

import asyncio
from collections import defaultdict

import numpy as np

from media_server.audio.chunk import Pcm
from media_server.caller.client import CallClient
from media_server.caller.demo import make_recordings
from media_server.caller.microphone import MICROPHONE_HZ
from tests.bench.table import row, show
from tests.servers import server
from tests.speech import Clip, clips

CALLS = 50
BEFORE_S = 0.3

STAGES = {
    "endpointing_ms": "endpointing (500 ms of silence)",
    "asr_final_ms": "ASR final",
    "llm_first_token_ms": "LLM first token",
    "tts_first_audio_ms": "TTS first audio",
    "first_packet_ms": "SpeechStopped to first packet",
    "voice_to_voice_ms": "voice to voice",
}


async def run() -> None:
    """Make fifty calls in a row, one order each."""
    times: dict[str, list[float]] = defaultdict(list)
    unanswered = 0
    sounds, source = await _sounds()
    async with server() as url:
        for number in range(CALLS):
            async with CallClient(url) as client:
                await client.play(sounds[number % len(sounds)])
                try:
                    latency = await client.wait_for(lambda event: event["type"] == "parley.latency", 10)
                except TimeoutError:
                    unanswered += 1
                    continue
            times["first turn" if number == 0 else "warm"].append(latency.event["voice_to_voice_ms"])
            for stage in STAGES:
                times[stage].append(latency.event[stage])
    targets = {"first_packet_ms": "p95 <= 150"}
    show(
        "voice_to_voice",
        f"Voice to voice on embedded engines, {CALLS} calls in a row ({source}), ms",
        [row(name, times[stage], targets.get(stage, "")) for stage, name in STAGES.items()],
        unanswered=unanswered,
        first_turn_after_start_ms=times["first turn"],
    )
    print(f"  not answered: {unanswered}; first turn after the start: {times['first turn']} ms")


async def _sounds() -> tuple[list[Pcm], str]:
    recorded = [clip for clip in clips("barista") if clip.start_s is not None and clip.end_s is not None]
    if recorded:
        sounds = await asyncio.to_thread(lambda: [_around_speech(clip.sound(), clip) for clip in recorded])
        return sounds, "barista clips"
    spoken = await make_recordings(["can i get a large latte with oat milk", "get me a small espresso"])
    return [saying.pcm for saying in spoken if saying.pcm is not None], "a synthetic caller"


def _around_speech(pcm: Pcm, clip: Clip) -> Pcm:
    start_s = clip.start_s or 0.0
    end_s = clip.end_s or 0.0
    cut = pcm[int(max(0.0, start_s - BEFORE_S) * MICROPHONE_HZ) : int((end_s + 0.1) * MICROPHONE_HZ)]
    return np.ascontiguousarray(cut)
