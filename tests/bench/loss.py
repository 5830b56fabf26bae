"""What does a bad network cost? Recorded orders go through a made-up one into our jitter buffer, and into aiortc's.

No socket and no waiting: packets carry the time at which they would arrive. For each network

    held       how long a packet that is here waits until its sound is given on
    late       from when a packet would have come at best to when its sound is given on: the network's part, too
    concealed  the share of the sound that was guessed, or silent in place of what was lost
    SNR        of the sound against the same packets decoded without loss, in dB over the frames that have sound
    PESQ       the same by ITU-T P.862.2, -0.5 to 4.6 (if the package `pesq` is installed)
    words      that the recogniser no longer hears as it hears them without loss, of all

After the outage also

    late 1 s after  p95 of the packets that are given on more than a second after the first one came again
    back ms         from when the first one came again until none is given on later than those before the outage were;
                    the longest of all clips
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from aiortc.jitterbuffer import JitterBuffer as AiortcBuffer
from aiortc.rtp import RtpPacket

from media_server.audio.chunk import HEARING_HZ, SPEAKING_HZ, AudioChunk, Pcm, silence
from media_server.audio.jitter import RtpSound
from media_server.audio.live_queue import LiveQueue
from media_server.audio.opus import OpusDecoder, OpusEncoder
from media_server.caller.network import Conditions, Network
from media_server.caller.report import percentiles
from media_server.config import ROOT
from media_server.engines.asr_sphinx_model import CepstralMean, SphinxModel
from media_server.engines.scenario import read_scenario
from media_server.transport.webrtc.inbound import Inbound, OpusSound
from tests.bench.quality import HOW_TO_GET_PESQ, has_pesq, pesq
from tests.bench.table import show
from tests.speech import MISSING, Clip, clips

N_CLIPS = 24
FRAME_TICKS = 960
FRAME_S = 0.02
_FRAME_24K = SPEAKING_HZ // 50
_FRAME_16K = HEARING_HZ // 50
_TAIL_S = 1.0
_SAME_MS = 0.1
"""Delays that differ by less are the same: times are sums of floats."""

NETWORKS: dict[str, Conditions] = {
    "clean": Conditions(),
    "1 % loss": Conditions(loss=0.01),
    "5 % loss": Conditions(loss=0.05),
    "10 % loss": Conditions(loss=0.10),
    "20 % loss": Conditions(loss=0.20),
    "10 % loss, bursts of 3": Conditions(loss=0.10, burst=3),
    "jitter +-10 ms": Conditions(jitter_ms=20),
    "jitter +-40 ms": Conditions(jitter_ms=80),
    "jitter +-80 ms": Conditions(jitter_ms=160),
    "5 % overtaken": Conditions(reorder=0.05),
}
OUTAGE = "outage of 2 s"


@dataclass(slots=True)
class Came:
    """What came out of a buffer: how long each packet was held, how late it was given on, and the sound.

    `back_ms`: until the delay was the one before the outage; NaN: there was none; infinity: it never was.
    """

    held_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    after_outage_ms: list[float] = field(default_factory=list)
    back_ms: float = math.nan
    concealed_ms: float = 0.0
    pcm: list[Pcm] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet: its number, and when it comes."""

    number: int
    at_s: float


async def run() -> None:
    """Send the clips through every network, into both buffers."""
    orders = clips("barista")[:N_CLIPS]
    if not orders:
        print(f"\nloss: skipped: {MISSING}")
        return
    recogniser = Recogniser()
    rows = []
    for name in [*NETWORKS, OUTAGE]:
        for buffer, play in (("ours", play_ours), ("aiortc", play_aiortc)):
            rows.append(_row(name, buffer, orders, play, recogniser))
    show("loss", "A bad network, into our jitter buffer and into aiortc's", rows)
    if not has_pesq():
        print(f"  {HOW_TO_GET_PESQ}")


def _row(
    name: str,
    buffer: str,
    orders: Sequence[Clip],
    play: Callable[[list[bytes], list[Arrival]], Came],
    recogniser: "Recogniser",
) -> dict[str, Any]:
    held, late, after, back, snrs, pesqs = [], [], [], [], [], []
    concealed_s = total_s = 0.0
    lost_words = words = 0
    for seed, clip in enumerate(orders):
        # Browsers and we ourselves send copies only where loss is reported: 10 % is what a sender then expects.
        payloads = encode(clip.sound(), 0 if name in ("clean", OUTAGE) or "loss" not in name else 10)
        clean = play(payloads, [Arrival(n, n * FRAME_S) for n in range(len(payloads))])
        came = play(payloads, arrivals(name, len(payloads), seed))
        held += came.held_ms
        late += came.late_ms
        after += came.after_outage_ms
        back.append(came.back_ms)
        concealed_s += came.concealed_ms / 1000
        total_s += len(payloads) * FRAME_S
        one, other = _join(clean.pcm), _join(came.pcm)
        snrs.append(snr_db(one, other))
        pesqs.append(pesq(one, other))
        expected, heard = recogniser.words(one), recogniser.words(other)
        words += len(expected)
        lost_words += differences(expected, heard)
    known = [value for value in pesqs if value is not None]
    return {
        "": name,
        "buffer": buffer,
        "held p50": percentiles(held)["p50"],
        "held p95": percentiles(held)["p95"],
        "late p50": percentiles(late)["p50"],
        "late p95": percentiles(late)["p95"],
        "late 1 s after": percentiles(after)["p95"] if after else math.nan,
        "back ms": max((value for value in back if not math.isnan(value)), default=math.nan),
        "concealed": f"{concealed_s / total_s:.1%}",
        "SNR dB": statistics.median(snrs),
        "PESQ": statistics.fmean(known) if known else math.nan,
        "words lost": f"{lost_words} of {words}",
    }


def encode(pcm: Pcm, loss_percent: int) -> list[bytes]:
    """Return the packets of a clip and of a second of silence behind it."""
    encoder = OpusEncoder(bitrate_bps=32_000, complexity=5, expected_loss_percent=max(1, loss_percent))
    whole = np.concatenate([pcm, silence(round(_TAIL_S * SPEAKING_HZ))])
    return [encoder.encode(whole[at : at + _FRAME_24K]) for at in range(0, len(whole) - _FRAME_24K, _FRAME_24K)]


def arrivals(name: str, n: int, seed: int) -> list[Arrival]:
    """Return which packets arrive and when, in that order."""
    if name == OUTAGE:
        begin = n // 3
        return [Arrival(at, at * FRAME_S) for at in range(n) if not begin <= at < begin + 100]
    conditions = NETWORKS[name]
    network = Network(
        Conditions(
            loss=conditions.loss,
            burst=conditions.burst,
            jitter_ms=conditions.jitter_ms,
            reorder=conditions.reorder,
            seed=seed,
        )
    )
    came = [(network.arrival_s(at * FRAME_S), at) for at in range(n)]
    return [
        Arrival(number, at_s) for at_s, number in sorted((at_s, number) for at_s, number in came if at_s is not None)
    ]


class _Noting(LiveQueue):
    """Keeps what is given on."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[AudioChunk] = []

    def put(self, chunk: AudioChunk, arrived_s: float) -> None:
        self.chunks.append(chunk)


class _Watched(OpusSound):
    """Notes when each packet is decoded."""

    def __init__(self, payloads: list[bytes], notes: "_Notes") -> None:
        super().__init__()
        self._number = {id(payload): n for n, payload in enumerate(payloads)}
        self._notes = notes
        self.now_s = 0.0

    def decode(self, payload: bytes) -> Pcm:
        self._notes.given_on(self._number[id(payload)], self.now_s)
        return super().decode(payload)


class _Notes:
    """Notes when each packet came, and when its sound was given on."""

    def __init__(self, came: Came, coming: list[Arrival]) -> None:
        self._came = came
        self._arrived_s = {arrival.number: arrival.at_s for arrival in coming}
        self._outage_over_s = _outage_over_s(coming)
        self._usual_ms = 0.0

    def given_on(self, number: int, now_s: float) -> None:
        late_ms = (now_s - number * FRAME_S) * 1000
        self._came.late_ms.append(late_ms)
        self._came.held_ms.append((now_s - self._arrived_s[number]) * 1000)
        if self._outage_over_s is not None:
            self._note_outage(late_ms, now_s, self._outage_over_s)

    def _note_outage(self, late_ms: float, now_s: float, over_s: float) -> None:
        if now_s < over_s:
            self._usual_ms = max(self._usual_ms, late_ms)
            return
        if late_ms > self._usual_ms + _SAME_MS:
            self._came.back_ms = math.inf
        elif not math.isfinite(self._came.back_ms):
            self._came.back_ms = (now_s - over_s) * 1000
        if now_s > over_s + 1.0:
            self._came.after_outage_ms.append(late_ms)


def _outage_over_s(coming: list[Arrival]) -> float | None:
    gaps = [(two.at_s - one.at_s, two.at_s) for one, two in pairwise(coming)]
    longest_s, over_s = max(gaps)
    return over_s if longest_s > 1.0 else None


def play_ours(payloads: list[bytes], coming: list[Arrival]) -> Came:
    """Let packets arrive at our side of a connection, with its beat of 20 ms."""
    came, queue = Came(), _Noting()
    decoder = _Watched(payloads, _Notes(came, coming))
    inbound = Inbound(decoder, queue, wait_limit_ms=200, started_s=0.0)
    beat_s = 0.013  # some place within the sender's 20 ms
    for arrival in [*coming, Arrival(-1, len(payloads) * FRAME_S + 0.02)]:
        while beat_s < arrival.at_s:
            decoder.now_s = beat_s
            inbound.advance(beat_s)
            beat_s += FRAME_S
        if arrival.number >= 0:
            decoder.now_s = arrival.at_s
            sound = RtpSound(1, arrival.number, arrival.number * FRAME_TICKS, payloads[arrival.number])
            inbound.receive(sound, arrival.at_s)
    came.concealed_ms = inbound.counts.concealed_ms + inbound.counts.filled_ms
    came.pcm = [chunk.pcm for chunk in queue.chunks]
    return came


def play_aiortc(payloads: list[bytes], coming: list[Arrival]) -> Came:
    """Let packets arrive at the buffer that aiortc gives an audio track: 16 packets, 4 of them waited for."""
    came = Came()
    buffer, decoder = AiortcBuffer(capacity=16, prefetch=4), OpusDecoder()
    notes = _Notes(came, coming)
    next_number = 0
    for arrival in coming:
        packet = RtpPacket(sequence_number=arrival.number, timestamp=arrival.number * FRAME_TICKS)
        packet._data = payloads[arrival.number]  # type: ignore[attr-defined]  # what its depayloader gives
        _, frame = buffer.add(packet)
        if frame is None:
            continue
        number = frame.timestamp // FRAME_TICKS
        missing = max(0, number - next_number)
        came.concealed_ms += missing * 20
        came.pcm += [silence(_FRAME_16K)] * missing  # nothing stands in for it; so its place stays comparable
        next_number = number + 1
        came.pcm.append(decoder.decode(frame.data))
        notes.given_on(number, arrival.at_s)
    return came


class Recogniser:
    """The embedded recogniser with the grammar of the coffee bar."""

    def __init__(self) -> None:
        scenario = read_scenario(ROOT / "config" / "scenarios" / "coffee.toml")
        self._model = SphinxModel({"grammar": scenario.grammar(), "language_model": None, "warm": 1})
        self._known: dict[bytes, list[str]] = {}

    def words(self, pcm: Pcm) -> list[str]:
        """Return what it hears; the same sound is heard the same."""
        sound = pcm.tobytes()
        if sound not in self._known:
            self._model._mean = CepstralMean()  # or it would hear each one in the light of those before
            self._known[sound] = self._hear(sound)
        return self._known[sound]

    def _hear(self, sound: bytes) -> list[str]:
        notes: list[dict[str, Any]] = []

        def keep(note: dict[str, Any], _: bytes) -> bool:
            notes.append(note)
            return True

        stream = self._model.open({})
        stream.feed(sound, keep)
        stream.finish(keep)
        stream.close()
        return [word for word, *_ in notes[-1]["words"]]


def differences(expected: list[str], heard: list[str]) -> int:
    """Return by how many words that are missing, new or others they differ (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for n, word in enumerate(expected, 1):
        above, row[0] = row[0], n
        for m, other in enumerate(heard, 1):
            above, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, above + (word != other))
    return row[-1]


def snr_db(clean: Pcm, came: Pcm) -> float:
    """Return the signal-to-noise ratio over the frames that have sound; 60: no difference."""
    n = min(len(clean), len(came)) // _FRAME_16K * _FRAME_16K
    one = clean[:n].astype(np.float64).reshape(-1, _FRAME_16K)
    other = came[:n].astype(np.float64).reshape(-1, _FRAME_16K)
    loud = one.std(axis=1) > 100
    noise = float(((one[loud] - other[loud]) ** 2).sum())
    return 60.0 if noise == 0 else min(60.0, 10 * float(np.log10((one[loud] ** 2).sum() / noise)))


def _join(parts: list[Pcm]) -> Pcm:
    return np.concatenate(parts) if parts else silence(0)
