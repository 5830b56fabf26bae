"""How late the packets of a stream come, so that it is known how long one that is missing is worth waiting for.

After NetEQ (WebRTC modules/audio_coding/neteq: histogram.cc, relative_arrival_delay_tracker.cc): a packet's delay is
counted from the fastest one of the last two seconds; the delays go into a histogram that forgets; what 97 % of them do
not exceed is the target. The path's own delay and a drift of the sender's clock fall out of it.
"""

BUCKET_MS = 5
BUCKETS = 100
"""Up to 500 ms. Who is later than that is not waited for."""

FORGET = 0.983
"""What is left of a packet's weight with each packet after it (NetEQ `kForgetFactor`): half of it after 40, 0.8 s."""

SHARE = 0.97
"""The share of packets that the target covers (NetEQ `kDelayQuantile`)."""

_HISTORY_S = 1.0  # of each of the two halves in which the fastest packet is looked for
_HEAVY = 1e12


class Lateness:
    """A histogram of delays that forgets."""

    def __init__(self) -> None:
        # Not every weight shrinks with a packet, but its own is larger than the last one's: that costs no loop.
        self._weights = [0.0] * BUCKETS
        self._total = 0.0
        self._next_weight = 1.0

    def add(self, late_ms: float) -> None:
        """Take the delay of one packet."""
        self._weights[min(max(int(late_ms // BUCKET_MS), 0), BUCKETS - 1)] += self._next_weight
        self._total += self._next_weight
        self._next_weight /= FORGET
        if self._next_weight > _HEAVY:
            self._weights = [weight / _HEAVY for weight in self._weights]
            self._total /= _HEAVY
            self._next_weight /= _HEAVY

    @property
    def target_ms(self) -> int:
        """Return what `SHARE` of the packets were not later than, to 5 ms; 0 on a clean path."""
        beyond = self._total * (1 - SHARE)
        for bucket in range(BUCKETS - 1, 0, -1):
            beyond -= self._weights[bucket]
            if beyond < 0:
                return (bucket + 1) * BUCKET_MS
        return 0


class Transit:
    """How long packets are under way, from the fastest one's time."""

    def __init__(self) -> None:
        self._fastest_s = float("inf")
        self._fastest_before_s = float("inf")
        self._since_s = 0.0

    def late_ms(self, sent_s: float, arrived_s: float) -> float:
        """Return how much later a packet came than the fastest of the last 1 to 2 s.

        Args:
            sent_s: when it was sent, on the sender's clock, whatever that began with.
            arrived_s: when it came, on ours.
        """
        transit_s = arrived_s - sent_s
        if arrived_s - self._since_s > _HISTORY_S:
            self._fastest_before_s, self._fastest_s = self._fastest_s, transit_s
            self._since_s = arrived_s
        self._fastest_s = min(self._fastest_s, transit_s)
        return (transit_s - min(self._fastest_s, self._fastest_before_s)) * 1000
