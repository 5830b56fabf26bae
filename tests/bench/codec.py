"""Which settings of the Opus encoder are worth their time?

Read speech of several people goes through every setting and back, without a network. For each

    packets  what libopus made of it: SILK (for voice), CELT (for all sound), or hybrid (SILK below 8 kHz, CELT above)
    encode   processor time of a frame of 20 ms, in us
    decode   the same of the far end's work, with the decoder that we have
    bytes/s  of payload
    PESQ     by ITU-T P.862.2 against the sound that went in, both at 16 kHz (if the package `pesq` is installed)

Every clip goes through all the settings before the next one does: when the machine becomes slower, it does so for all.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from media_server.audio.chunk import FRAME_MS, FRAME_SAMPLES, HEARING_HZ, SPEAKING_HZ, Pcm
from media_server.audio.opus import OpusDecoder, OpusEncoder
from media_server.audio.resample import Resampler
from media_server.config import WebRtcConfig, load_config
from tests.bench.quality import HOW_TO_GET_PESQ, has_pesq, pesq
from tests.bench.table import show
from tests.speech import MISSING, clips

EVERY = 10
"""Of the clips of hard read speech, ten of each speaker: one of each."""

BITRATES_BPS = (32_000, 48_000, 64_000)
COMPLEXITIES = (0, 2, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What an encoder is told.

    Attributes:
        expected_loss_percent: 0 asks for CELT; 1 for SILK, and is too little for copies of packets.
    """

    expected_loss_percent: int
    bitrate_bps: int
    complexity: int

    @property
    def name(self) -> str:
        """Return which encoder is asked for."""
        return "SILK" if self.expected_loss_percent else "CELT"


SETTINGS = tuple(
    Setting(expected_loss_percent=loss, bitrate_bps=bitrate_bps, complexity=complexity)
    for loss, bitrate_bps, complexity in product((1, 0), BITRATES_BPS, COMPLEXITIES)
)


@dataclass(frozen=True, slots=True)
class Coded:
    """A clip that went through an encoder and a decoder. `heard`: 16 kHz; times in s of the processor."""

    packets: list[bytes]
    heard: Pcm
    encode_s: float
    decode_s: float


async def run() -> None:
    """Send the clips through every setting."""
    chosen = clips("librispeech_other")[::EVERY]
    if not chosen:
        print(f"\ncodec: skipped: {MISSING}")
        return
    sounds = [_whole_frames(clip.sound()) for clip in chosen]
    coded: dict[Setting, list[Coded]] = {setting: [] for setting in SETTINGS}
    for sound in sounds:
        for setting in SETTINGS:
            coded[setting].append(code(sound, setting))
    clean = [Resampler(SPEAKING_HZ, HEARING_HZ).push(sound, last=True) for sound in sounds]
    ours = load_config({}).config.webrtc
    show(
        "codec",
        f"Opus encoders, {sum(map(len, sounds)) / SPEAKING_HZ:.0f} s of read speech, us of processor time a frame",
        [_row(setting, coded[setting], clean, ours) for setting in SETTINGS],
    )
    if not has_pesq():
        print(f"  {HOW_TO_GET_PESQ}")


def code(pcm: Pcm, setting: Setting) -> Coded:
    """Return what becomes of `pcm`, int16, shape (480 n,), 24 kHz."""
    encoder = OpusEncoder(
        bitrate_bps=setting.bitrate_bps,
        complexity=setting.complexity,
        expected_loss_percent=setting.expected_loss_percent,
    )
    decoder = OpusDecoder()
    begun_s = time.process_time()
    packets = [encoder.encode(pcm[at : at + FRAME_SAMPLES]) for at in range(0, len(pcm), FRAME_SAMPLES)]
    encoded_s = time.process_time()
    heard = [decoder.decode(packet) for packet in packets]
    decoded_s = time.process_time()
    return Coded(packets, np.concatenate(heard), encoded_s - begun_s, decoded_s - encoded_s)


def kind(packets: Sequence[bytes]) -> str:
    """Return what most of the packets are: SILK, hybrid or CELT."""
    # RFC 6716 section 3.1, table 2: the first five bits of a packet name its configuration.
    kinds = Counter(
        "SILK" if packet[0] >> 3 < 12 else "hybrid" if packet[0] >> 3 < 16 else "CELT" for packet in packets
    )
    return kinds.most_common(1)[0][0]


def _row(setting: Setting, coded: Sequence[Coded], clean: Sequence[Pcm], ours: WebRtcConfig) -> dict[str, Any]:
    packets = [packet for each in coded for packet in each.packets]
    scores = [pesq(one, each.heard) for one, each in zip(clean, coded, strict=True)]
    known = [score for score in scores if score is not None]
    is_ours = (setting.name, setting.bitrate_bps, setting.complexity) == ("CELT", ours.bitrate_bps, ours.complexity)
    return {
        "": setting.name,
        "kb/s": setting.bitrate_bps // 1000,
        "complexity": setting.complexity,
        "packets": kind(packets),
        "encode us": sum(each.encode_s for each in coded) / len(packets) * 1e6,
        "decode us": sum(each.decode_s for each in coded) / len(packets) * 1e6,
        "bytes/s": round(sum(map(len, packets)) * 1000 / (len(packets) * FRAME_MS)),
        "PESQ": statistics.fmean(known) if known else math.nan,
        " ": "the default" if is_ours else "",
    }


def _whole_frames(pcm: Pcm) -> Pcm:
    return pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES]
