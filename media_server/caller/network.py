"""A bad network, made up: which datagrams are lost and when the others arrive. The same seed does the same.

loss       of all datagrams, so much is lost; in runs of `burst` on average (a Gilbert model of two states)
delay      every datagram takes so long
jitter     and up to so much more, each by chance; the order stays, as in a router's queue
reorder    so many are overtaken: they come one and a half packets later than they would
"""

import math
import random
from dataclasses import dataclass

OVERTAKEN_S = 0.030


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How bad a network is. `loss` and `reorder` are shares, 0 to 1; `burst` is in datagrams."""

    loss: float = 0.0
    burst: float = 1.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reorder: float = 0.0
    seed: int = 0

    @property
    def clean(self) -> bool:
        """Return whether nothing is done to anything."""
        return not (self.loss or self.delay_ms or self.jitter_ms or self.reorder)


class Network:
    """One direction of a path."""

    def __init__(self, conditions: Conditions, stream: int = 0) -> None:
        """`stream`: paths with different numbers are bad in different places."""
        self._conditions = conditions
        self._rng = random.Random(f"{conditions.seed}/{stream}")
        self._losing = False
        self._last_arrival_s = -math.inf

    def arrival_s(self, sent_s: float) -> float | None:
        """Return when a datagram that is sent now arrives; None: it is lost."""
        conditions = self._conditions
        if self._is_lost():
            return None
        arrival_s = sent_s + (conditions.delay_ms + self._rng.random() * conditions.jitter_ms) / 1000
        if self._rng.random() < conditions.reorder:
            return arrival_s + OVERTAKEN_S
        # Never at the same time: a loop may call what is due together in any order.
        self._last_arrival_s = max(math.nextafter(self._last_arrival_s, math.inf), arrival_s)
        return self._last_arrival_s

    def _is_lost(self) -> bool:
        # Elliott 1963: a run of losses ends with 1 / burst; it begins so often that the share comes out right.
        conditions = self._conditions
        if not conditions.loss:
            return False
        ends = 1 / max(conditions.burst, 1.0)
        begins = min(1.0, ends * conditions.loss / max(1e-9, 1 - conditions.loss))
        self._losing = self._rng.random() >= ends if self._losing else self._rng.random() < begins
        return self._losing
