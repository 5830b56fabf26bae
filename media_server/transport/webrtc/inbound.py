"""From RTP packets to what we hear: order, loss and time are settled, and 16 kHz mono goes into the queue.

No thread and no task: packets are decoded as they come (Opus 30 us, G.711 and G.722 10 us), and `advance` is called on
the beat of the outgoing packets.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from media_server.audio import g711, g722, opus
from media_server.audio.chunk import FRAME_MS, HEARING_HZ, AudioChunk, Pcm, silence
from media_server.audio.dtmf import SoundNumbers
from media_server.audio.jitter import Concealed, JitterBuffer, JitterCounts, Played, RtpSound, Silent, Step
from media_server.audio.levels import level_dbfs
from media_server.audio.live_queue import LiveQueue

QUIET_DBFS = -50.0
_QUIET_BEFORE_MS = 1000
"""Quiet sound is left out only when the turn before it has surely ended, for that is measured in quiet sound."""

_FADE_SAMPLES = HEARING_HZ * FRAME_MS // 1000


class SoundDecoder(Protocol):
    """Turns the packets of one stream into 16 kHz mono."""

    clock_hz: int

    def ticks(self, payload: bytes) -> int:
        """Return how long a packet sounds, in ticks of the RTP clock; 0 if it is malformed."""

    def decode(self, payload: bytes) -> Pcm:
        """Return the sound of a packet that has `ticks`.

        Raises:
            OpusError: only its first bytes are those of a packet. The decoder stays usable.
        """

    def conceal(self, n_samples: int, following: bytes | None) -> Pcm:
        """Return a guess at `n_samples` of lost sound, with the help of the packet after it."""


class OpusSound:
    """Opus: the decoder itself conceals, and finds the copy that the following packet carries."""

    clock_hz = opus.CLOCK_HZ

    def __init__(self) -> None:
        self._decoder = opus.OpusDecoder()

    def ticks(self, payload: bytes) -> int:
        """See `SoundDecoder`."""
        return opus.packet_ticks(payload)

    def decode(self, payload: bytes) -> Pcm:
        """See `SoundDecoder`."""
        return self._decoder.decode(payload)

    def conceal(self, n_samples: int, following: bytes | None) -> Pcm:
        """See `SoundDecoder`."""
        if following is None:
            return self._decoder.conceal(n_samples)
        try:
            return self._decoder.recover(following, n_samples)
        except opus.OpusError:
            return self._decoder.conceal(n_samples)


class TelephoneSound:
    """G.711 and G.722, one byte a tick: what is lost is the last packet again, half as loud each time."""

    clock_hz = 8_000
    _MAX_BYTES = clock_hz * 120 // 1000

    def __init__(self, decode: Callable[[bytes], Pcm]) -> None:
        self._decode = decode
        self._last = silence(0)

    def ticks(self, payload: bytes) -> int:
        """See `SoundDecoder`."""
        return len(payload) if len(payload) <= self._MAX_BYTES else 0

    def decode(self, payload: bytes) -> Pcm:
        """See `SoundDecoder`."""
        self._last = self._decode(payload)
        return self._last

    def conceal(self, n_samples: int, following: bytes | None) -> Pcm:
        """See `SoundDecoder`."""
        pcm = silence(n_samples)
        at = 0
        while len(self._last) and at < n_samples:
            self._last = self._last // 2
            take = min(len(self._last), n_samples - at)
            pcm[at : at + take] = self._last[:take]
            at += take
        return pcm


def _g711(law: g711.Law) -> TelephoneSound:
    upsampler = g711.Upsampler()
    return TelephoneSound(lambda payload: upsampler.push(g711.decode(payload, law)))


DECODERS: dict[str, Callable[[], SoundDecoder]] = {
    "opus": OpusSound,
    "g722": lambda: TelephoneSound(g722.G722Decoder().decode),
    "pcmu": lambda: _g711("ulaw"),
    "pcma": lambda: _g711("alaw"),
}
"""By the name of the codec in SDP, in lower case."""


class Inbound:
    """The ear's side of a connection."""

    def __init__(self, decoder: SoundDecoder, sound_in: LiveQueue, *, wait_limit_ms: int, started_s: float) -> None:
        """Start to hear.

        Args:
            decoder: of the codec that was agreed on.
            sound_in: where the sound goes.
            wait_limit_ms: how long a missing packet is waited for at most.
            started_s: now, on the clock of `receive` and `advance`.
        """
        self._decoder = decoder
        self._sound_in = sound_in
        self._buffer = JitterBuffer(
            clock_hz=decoder.clock_hz, wait_limit_ms=wait_limit_ms, ticks_of=decoder.ticks, started_s=started_s
        )
        self._numbers = SoundNumbers()
        self._pts = 0
        self._quiet_ms = 0.0

    @property
    def counts(self) -> JitterCounts:
        """Return what happened to the packets so far."""
        return self._buffer.counts

    def receive(self, packet: RtpSound, now_s: float) -> None:
        """Take a packet that has just arrived."""
        for step in self._buffer.put(self._numbers.renumber(packet), now_s):
            self._take(step, now_s)

    def pass_over(self, packet: RtpSound) -> None:
        """Take note of a packet that is no sound, so that it is not missed."""
        self._numbers.leave_out(packet)

    def advance(self, now_s: float) -> None:
        """Let time pass. To be called every 20 ms."""
        for step in self._buffer.advance(now_s):
            self._take(step, now_s)

    def _take(self, step: Step, now_s: float) -> None:
        match step:
            case Played():
                pcm = self._decoded(step)
                if not self._leave_out(step, pcm):
                    self._put(pcm, step.arrived_s)
            case Concealed():
                pcm = self._decoder.conceal(self._samples(step.n_ticks), step.following)
                self._put(_faded(pcm) if step.last else pcm, now_s)
            case Silent():
                self._put(silence(self._samples(step.n_ticks)), now_s)

    def _decoded(self, step: Played) -> Pcm:
        try:
            return self._decoder.decode(step.payload)
        except opus.OpusError:
            self._buffer.refuse(step)
            return self._decoder.conceal(self._samples(step.n_ticks), None)

    def _leave_out(self, step: Played, pcm: Pcm) -> bool:
        if not step.leave_out or level_dbfs(pcm) > QUIET_DBFS:
            self._quiet_ms = 0.0
            return False
        self._quiet_ms += len(pcm) * 1000 / HEARING_HZ
        if self._quiet_ms <= _QUIET_BEFORE_MS:
            return False
        return self._buffer.leave_out(step)

    def _put(self, pcm: Pcm, arrived_s: float) -> None:
        if len(pcm):
            self._sound_in.put(AudioChunk(pcm, HEARING_HZ, self._pts), arrived_s)
            self._pts += len(pcm)

    def _samples(self, n_ticks: int) -> int:
        return n_ticks * HEARING_HZ // self._decoder.clock_hz


def _faded(pcm: Pcm) -> Pcm:
    """Return `pcm` with its last 20 ms going down to 0 in a straight line, so that silence after it does not click."""
    n = min(len(pcm), _FADE_SAMPLES)
    return np.concatenate((pcm[:-n], (pcm[-n:] * np.linspace(1, 0, n)).astype(np.int16)))
