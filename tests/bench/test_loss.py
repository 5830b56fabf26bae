"""How long an outage delays what comes after it is told as it is."""

import math

import pytest

from media_server.audio.chunk import SPEAKING_HZ, silence
from tests.bench.loss import OUTAGE, Arrival, arrivals, encode, play_aiortc

PAYLOADS = encode(silence(6 * SPEAKING_HZ), 0)


def test_a_buffer_that_always_holds_80_ms_is_back_80_ms_after_an_outage() -> None:
    came = play_aiortc(PAYLOADS, arrivals(OUTAGE, len(PAYLOADS), seed=0))

    assert came.back_ms == pytest.approx(80)


def test_a_delay_that_stays_is_never_back() -> None:
    coming = [
        Arrival(each.number, each.at_s + (0.05 if each.number > 200 else 0))
        for each in arrivals(OUTAGE, len(PAYLOADS), seed=0)
    ]

    came = play_aiortc(PAYLOADS, coming)

    assert came.back_ms == math.inf


def test_without_an_outage_there_is_nothing_to_come_back_from() -> None:
    came = play_aiortc(PAYLOADS, arrivals("5 % loss", len(PAYLOADS), seed=0))

    assert math.isnan(came.back_ms)
