"""Keys that a caller presses, as telephones send them: RFC 4733, packets among those of the sound.

A press is many packets with one timestamp, each of which says how long it has lasted. The last one has the end bit, and
comes three times. Pure: time is passed in.
"""

import struct
from collections import deque
from dataclasses import replace

from media_server.audio.jitter import RtpSound
from media_server.audio.wrapping import SEQUENCES, TIMESTAMPS, signed
from media_server.events import DigitPressed

DIGITS = "0123456789*#ABCD"  # RFC 4733 section 3.2, table 3: the codes 0 to 15

LOST_END_S = 0.2
"""A press of which nothing more comes for so long is over: its packets are at most 50 ms apart (section 2.5.1.2)."""

_OVERTAKEN_S = 2
"""A packet of so long before the newest press was overtaken by it; from further back, the clock has jumped."""

_LONGEST_TICKS = 0xFFFF
_SEGMENT_SLACK_S = 0.1
_END_BIT = 0x80
_PAYLOAD = struct.Struct("!BBH")  # event; end, reserved, volume; duration: section 2.3

_REMEMBERED = 64
_REMEMBERED_SPAN = 1_000


class DigitReader:
    """Tells of each press once: at its end, or once it is clear that its end was lost."""

    def __init__(self, clock_hz: int) -> None:
        self._clock_hz = clock_hz
        self._ssrc: int | None = None
        self._began = 0
        self._digit = ""
        self._earlier_ticks = 0
        self._ticks = 0
        self._over = True
        self._last_s = 0.0
        self.malformed = 0

    def put(self, packet: RtpSound, now_s: float) -> list[DigitPressed]:
        """Take a packet and return the presses that have ended."""
        if len(packet.payload) < _PAYLOAD.size:
            self.malformed += 1
            return []
        code, flags, ticks = _PAYLOAD.unpack_from(packet.payload)
        if code >= len(DIGITS):
            return []  # a flash or another event that we have not asked for
        pressed: list[DigitPressed] = []
        since = signed(packet.timestamp - self._began, TIMESTAMPS)
        if packet.ssrc != self._ssrc or not -_OVERTAKEN_S * self._clock_hz < since <= 0:
            pressed += self._begin(packet, DIGITS[code], since)
        elif since < 0:
            return []
        self._ticks = max(self._ticks, ticks)
        self._last_s = now_s
        return [*pressed, *self._end()] if flags & _END_BIT else pressed

    def advance(self, now_s: float) -> list[DigitPressed]:
        """Return the press whose end must have been lost. To be called every 20 ms or so."""
        return self._end() if not self._over and now_s - self._last_s > LOST_END_S else []

    def _begin(self, packet: RtpSound, digit: str, since: int) -> list[DigitPressed]:
        # Section 2.5.1.3: a press that is longer than its field for the duration goes on under a new timestamp.
        goes_on = (
            not self._over
            and (packet.ssrc, digit) == (self._ssrc, self._digit)
            and 0 <= since - _LONGEST_TICKS <= _SEGMENT_SLACK_S * self._clock_hz
        )
        pressed = [] if goes_on else self._end()
        self._earlier_ticks = self._earlier_ticks + since if goes_on else 0
        self._ssrc, self._began, self._digit = packet.ssrc, packet.timestamp, digit
        self._ticks = 0
        self._over = False
        return pressed

    def _end(self) -> list[DigitPressed]:
        if self._over:
            return []
        self._over = True
        return [DigitPressed(self._digit, round((self._earlier_ticks + self._ticks) * 1000 / self._clock_hz))]


class SoundNumbers:
    """Numbers the packets of sound as if there were no others in their stream: presses leave no gap.

    A press that sound has overtaken keeps its number, and is then missed like lost sound.
    """

    def __init__(self) -> None:
        self._ssrc: int | None = None
        self._newest = 0
        self._others: deque[int] = deque(maxlen=_REMEMBERED)
        self._n_others = 0

    def leave_out(self, packet: RtpSound) -> None:
        """Take a packet that is no sound out of the count."""
        seq = packet.sequence_number
        if packet.ssrc == self._ssrc and _after(seq, self._newest) and seq not in self._others:
            self._others.append(seq)
            self._n_others += 1

    def renumber(self, packet: RtpSound) -> RtpSound:
        """Return a packet of sound with its place among those of sound."""
        seq = packet.sequence_number
        if packet.ssrc != self._ssrc:
            self._ssrc, self._newest = packet.ssrc, seq
            self._others.clear()
            self._n_others = 0
        elif _after(seq, self._newest):
            self._newest = seq
        if not self._n_others:
            return packet
        while self._others and signed(seq - self._others[0], SEQUENCES) > _REMEMBERED_SPAN:
            self._others.popleft()
        n_before = self._n_others - sum(_after(other, seq) for other in self._others)
        return replace(packet, sequence_number=(seq - n_before) % SEQUENCES)


def _after(one: int, other: int) -> bool:
    return signed(one - other, SEQUENCES) > 0
