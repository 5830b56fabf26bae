"""Puts the packets of a stream back into order and step: what to play, what to conceal, where to be silent.

    put(packet)      in order: played at once, whatever the path does, for nobody hears this but machines
                     after a gap: held until the missing one comes or is not worth waiting for; then it is concealed
    advance(now_s)   gives up on gaps, and keeps the clock going: where nothing comes in time, 20 ms of concealment each
                     20 ms, and silence after 100 ms

Two targets say how long is in time, and both adapt to the path (lateness.py): how late packets come at all, for the
clock; how late they come after those that overtook them, for gaps. On a clean path each is one packet.

Sequence numbers say what is missing, timestamps say how much time it was. What the clock has filled counts for a gap
that comes to light later. If it comes to light that there was none, only delay, then no word is dropped: all is played
at once, and the stream is *ahead* of the sender by what the clock had filled. `leave_out` says that a packet, if it is
quiet, may be left out to come back into step. So delay never stays: a stall is over when its packets are here.

Pure: time is passed in, sound is bytes. One unit of time here is a tick of the sender's RTP clock.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from media_server.audio.chunk import FRAME_MS
from media_server.audio.lateness import Lateness, Transit
from media_server.audio.wrapping import SEQUENCES, TIMESTAMPS, signed

PATIENCE_MS = 15
"""How long at least a gap is waited for once something came after it: until the next packet, or nearly so."""

IDLE_MS = 40
"""So long after a packet should have come at the latest, the clock goes on by itself."""

CONCEAL_MS = 100
"""A guess longer than this sounds like a machine; silence follows."""

STEP_LIMIT_MS = 500
"""A gap in the timestamps that is longer than the time that passed, by more than this, is a new beginning."""

AHEAD_LIMIT_MS = 2000
"""Further ahead than this is forgotten: the stream has a new place on the clock."""

_REMEMBERED = 100
_TARGETS_EVERY = 10  # packets
_STALL_S = 0.1
_SEQUENCE_JUMP = 500


@dataclass(frozen=True, slots=True)
class RtpSound:
    """What of an RTP packet matters here."""

    ssrc: int
    sequence_number: int
    timestamp: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Played:
    """Decode this. `leave_out`: if it is quiet, it need not be heard. `arrived_s`: when it came."""

    payload: bytes
    n_ticks: int
    arrived_s: float
    leave_out: bool


@dataclass(frozen=True, slots=True)
class Concealed:
    """Guess what was lost. `following`: the packet just after it, which may carry a copy.

    `last`: no more may be guessed, so its end should fade: silence follows unless a packet comes just then.
    """

    n_ticks: int
    following: bytes | None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing was sent, or too much was lost to guess."""

    n_ticks: int


Step: TypeAlias = Played | Concealed | Silent


@dataclass(slots=True)
class JitterCounts:
    """What happened to the packets of a stream.

    Attributes:
        received: all that came, also those counted below.
        lost: never came, or too late.
        late: came after their place had been concealed.
        duplicate: came a second time.
        malformed: empty, oversized, not of the codec, or refused by its decoder.
        concealed_ms: guessed sound.
        filled_ms: silence put in because nothing came, or too much was lost.
        left_out_ms: quiet sound left out to come back into step.
        restarts: a new source, or a jump of sequence or time.
    """

    received: int = 0
    lost: int = 0
    late: int = 0
    duplicate: int = 0
    malformed: int = 0
    concealed_ms: float = 0.0
    filled_ms: float = 0.0
    left_out_ms: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    timestamp: int
    payload: bytes
    n_ticks: int
    arrived_s: float


class JitterBuffer:
    """The order and the clock of one received stream."""

    def __init__(
        self, *, clock_hz: int, wait_limit_ms: int, ticks_of: Callable[[bytes], int], started_s: float = 0.0
    ) -> None:
        """Make the buffer of a stream.

        Args:
            clock_hz: ticks a second of the RTP timestamps.
            wait_limit_ms: how long a missing packet is waited for at most, however bad the path.
            ticks_of: how long a payload sounds; 0: it is malformed.
            started_s: from when on time is filled with silence.
        """
        self.counts = JitterCounts()
        self._ticks_of = ticks_of
        self._ticks_per_ms = clock_hz / 1000
        self._wait_limit_ms = wait_limit_ms
        self._transit = Transit()
        self._arrivals = Lateness()
        self._overtakings = Lateness()
        self._until_targets = 0
        self._gap_wait_s = PATIENCE_MS / 1000
        self._idle_s = (IDLE_MS + FRAME_MS) / 1000
        self._frame_ticks = clock_hz * FRAME_MS // 1000
        self._conceal_ticks = clock_hz * CONCEAL_MS // 1000
        self._step_limit_ticks = clock_hz * STEP_LIMIT_MS // 1000
        self._ahead_limit_ticks = clock_hz * AHEAD_LIMIT_MS // 1000
        self._ssrc: int | None = None
        self._next_seq = 0
        self._next_ts = 0
        self._ahead_ticks = 0
        self._guessed_ticks = 0
        self._bad_seq: int | None = None
        self._something_lost = False
        self._held: dict[int, _Held] = {}
        self._given_up: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._filled_until_s = started_s

    @property
    def ahead_ms(self) -> float:
        """Return how much silence the clock has filled in that no gap has accounted for (yet)."""
        return self._ahead_ticks / self._ticks_per_ms

    def put(self, packet: RtpSound, now_s: float) -> list[Step]:
        """Take a packet and return what is to be played now, in order."""
        self.counts.received += 1
        n_ticks = self._ticks_of(packet.payload)
        if n_ticks <= 0:
            self.counts.malformed += 1
        elif not self._held and packet.sequence_number == self._next_seq % SEQUENCES and packet.ssrc == self._ssrc:
            # Nearly every packet: the next one, with nothing held.
            self._bad_seq = None
            timestamp = self._unwrapped(packet.timestamp)
            self._learn(timestamp, now_s, now_s)
            return self._play(timestamp, packet.payload, n_ticks, now_s, now_s)
        return self._sort(packet, n_ticks, now_s)

    def advance(self, now_s: float) -> list[Step]:
        """Return what is to be played because time has passed. To be called every 20 ms or so."""
        steps = self._release(now_s)
        if self._held:
            return steps
        idle_s = self._idle_s
        if now_s - self._filled_until_s > idle_s + _STALL_S:
            # We stood still, not the sender: what came meanwhile is still on its way to us.
            self._filled_until_s = now_s - idle_s - FRAME_MS / 1000
        n_ticks = 0
        while now_s - self._filled_until_s > idle_s:
            self._filled_until_s += FRAME_MS / 1000
            n_ticks += self._frame_ticks
        if n_ticks:
            self._ahead_ticks += n_ticks
            room = self._conceal_ticks - self._guessed_ticks if self._ssrc is not None else 0
            guessed = min(n_ticks, room)
            if guessed:
                steps.append(self._concealed(guessed, None, last=guessed == room))
            if n_ticks > guessed:
                steps.append(self._silent(n_ticks - guessed))
        return steps

    def leave_out(self, played: Played) -> bool:
        """Return whether `played`, which is quiet and `leave_out`, may still be left out; if so, it counts as left out.

        What came at once is marked all at once: once enough is left out, the rest must be heard.
        """
        if played.n_ticks > self._ahead_ticks:
            return False
        self._ahead_ticks -= played.n_ticks
        self.counts.left_out_ms += played.n_ticks / self._ticks_per_ms
        return True

    def refuse(self, played: Played) -> None:
        """Count `played` as malformed after all, and its time as concealed: it began well, but cannot be decoded."""
        self.counts.malformed += 1
        self.counts.concealed_ms += played.n_ticks / self._ticks_per_ms

    @property
    def gap_wait_ms(self) -> float:
        """Return how long a packet that others have overtaken is waited for now."""
        return self._gap_wait_s * 1000

    @property
    def idle_ms(self) -> float:
        """Return after how long without sound the clock goes on now."""
        return self._idle_s * 1000

    # --- inside ---

    def _sort(self, packet: RtpSound, n_ticks: int, now_s: float) -> list[Step]:
        steps: list[Step] = []
        if packet.ssrc != self._ssrc:
            if n_ticks <= 0:
                return steps
            steps += self._flush(now_s)
            self._restart(packet)
        seq = self._next_seq + signed(packet.sequence_number - self._next_seq, SEQUENCES)
        if abs(seq - self._next_seq) > _SEQUENCE_JUMP:
            # RFC 3550 appendix A.1: two packets in a row after a jump are a restart, one alone is a stray.
            if self._bad_seq != packet.sequence_number:
                self._bad_seq = (packet.sequence_number + 1) % SEQUENCES
                self.counts.lost += 1
                return steps
            steps += self._flush(now_s)
            self._restart(packet)
            seq = self._next_seq
        self._bad_seq = None
        timestamp = self._unwrapped(packet.timestamp)
        if seq in self._held:
            self.counts.duplicate += 1
        elif seq < self._next_seq:
            overtaken_s = next((at_s for given_up, at_s in self._given_up if given_up == seq), None)
            if overtaken_s is None:
                self.counts.duplicate += 1
            else:
                self.counts.late += 1
                self._learn(timestamp, now_s, overtaken_s)
        else:
            overtaken_s = min((held.arrived_s for n, held in self._held.items() if n > seq), default=now_s)
            self._learn(timestamp, now_s, overtaken_s)
            self._held[seq] = _Held(timestamp, packet.payload, n_ticks, now_s)
            steps += self._release(now_s)
        return steps

    def _unwrapped(self, timestamp: int) -> int:
        return self._next_ts + signed(timestamp - self._next_ts, TIMESTAMPS)

    def _learn(self, timestamp: int, now_s: float, overtaken_s: float) -> None:
        """Take how late a packet came, by its timestamp and after the first packet that overtook it."""
        self._arrivals.add(self._transit.late_ms(timestamp / self._ticks_per_ms / 1000, now_s))
        self._overtakings.add((now_s - overtaken_s) * 1000)
        self._until_targets -= 1
        if self._until_targets <= 0:
            self._until_targets = _TARGETS_EVERY
            gap_wait_ms = max(PATIENCE_MS, self._overtakings.target_ms)
            self._gap_wait_s = min(gap_wait_ms, self._wait_limit_ms) / 1000
            self._idle_s = (IDLE_MS + min(max(FRAME_MS, self._arrivals.target_ms), self._wait_limit_ms)) / 1000

    def _release(self, now_s: float) -> list[Step]:
        steps: list[Step] = []
        while self._held:
            held = self._held.pop(self._next_seq, None)
            if held is None:
                if not self._gap_is_over(now_s):
                    break
                first = min(self._held)
                self._give_up_to(first)
                continue
            if held.n_ticks <= 0:
                self._next_seq += 1
                self._something_lost = True
                continue
            steps += self._play(held.timestamp, held.payload, held.n_ticks, held.arrived_s, now_s)
        return steps

    def _give_up_to(self, first: int) -> None:
        if first > self._next_seq:
            overtaken_s = min(held.arrived_s for held in self._held.values())
            self._given_up.extend((seq, overtaken_s) for seq in range(self._next_seq, first))
            self.counts.lost += first - self._next_seq
            self._something_lost = True
            self._next_seq = first

    def _gap_is_over(self, now_s: float) -> bool:
        oldest_s = min(held.arrived_s for held in self._held.values())
        return now_s - oldest_s >= self._gap_wait_s

    def _play(self, timestamp: int, payload: bytes, n_ticks: int, arrived_s: float, now_s: float) -> list[Step]:
        """Return the steps to the packet that is next and that itself."""
        steps: list[Step] = []
        gap_ticks = timestamp - self._next_ts
        if gap_ticks < 0 or gap_ticks - self._ahead_ticks > self._step_limit_ticks:
            self.counts.restarts += 1
            self._ahead_ticks = 0
            self._transit = Transit()
        else:
            accounted = min(gap_ticks, self._ahead_ticks)
            self._ahead_ticks = min(self._ahead_ticks - accounted, self._ahead_limit_ticks)
            if gap_ticks > accounted:
                steps += self._fill(gap_ticks - accounted, n_ticks, payload)
        self._something_lost = False
        self._next_seq += 1
        self._next_ts = timestamp + n_ticks
        self._guessed_ticks = 0
        # A packet that is longer than 20 ms is followed by the next one so much later.
        longer_s = max(0, n_ticks - self._frame_ticks) / self._ticks_per_ms / 1000
        self._filled_until_s = max(self._filled_until_s, now_s + longer_s)
        steps.append(Played(payload, n_ticks, arrived_s, self._ahead_ticks >= n_ticks))
        return steps

    def _fill(self, gap_ticks: int, n_ticks: int, payload: bytes) -> list[Step]:
        if not self._something_lost:
            return [self._silent(gap_ticks)]
        room = self._conceal_ticks - self._guessed_ticks
        if gap_ticks <= room:
            return [self._concealed(gap_ticks, payload)]
        # The packet after the gap carries a copy of the one before it, however long the gap was.
        tail = min(n_ticks, gap_ticks)
        head = max(0, min(room, gap_ticks - tail))
        middle = gap_ticks - head - tail
        steps: list[Step] = [self._concealed(head, None, last=middle > 0)] if head else []
        if middle:
            steps.append(self._silent(middle))
        return [*steps, self._concealed(tail, payload)]

    def _concealed(self, n_ticks: int, following: bytes | None, *, last: bool = False) -> Concealed:
        self._guessed_ticks += n_ticks
        self.counts.concealed_ms += n_ticks / self._ticks_per_ms
        return Concealed(n_ticks, following, last)

    def _silent(self, n_ticks: int) -> Silent:
        self._guessed_ticks = self._conceal_ticks
        self.counts.filled_ms += n_ticks / self._ticks_per_ms
        return Silent(n_ticks)

    def _flush(self, now_s: float) -> list[Step]:
        steps: list[Step] = []
        while self._held:
            first = min(self._held)
            self._give_up_to(first)
            steps += self._release(now_s)
        return steps

    def _restart(self, packet: RtpSound) -> None:
        if self._ssrc is not None:
            self.counts.restarts += 1
        self._ssrc = packet.ssrc
        self._transit = Transit()
        self._next_seq = packet.sequence_number
        self._next_ts = packet.timestamp
        self._ahead_ticks = 0
        self._something_lost = False
        self._bad_seq = None
        self._given_up.clear()
