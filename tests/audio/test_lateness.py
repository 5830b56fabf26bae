import random

import pytest

from media_server.audio.lateness import Lateness, Transit


def test_a_clean_path_is_not_waited_for() -> None:
    lateness = Lateness()

    for n in range(100):
        lateness.add(n % 5)

    assert lateness.target_ms == 0


def test_the_target_covers_97_in_100_packets() -> None:
    lateness = Lateness()
    rng = random.Random(1)

    for _ in range(500):
        lateness.add(rng.uniform(0, 80))

    assert 70 <= lateness.target_ms <= 80


def test_one_late_packet_in_a_hundred_is_given_up() -> None:
    lateness = Lateness()

    for n in range(200):
        lateness.add(60 if n == 100 else 0)

    assert lateness.target_ms == 0


def test_the_target_grows_within_two_packets_and_is_forgotten_within_four_seconds() -> None:
    lateness = Lateness()
    for _ in range(100):
        lateness.add(0)

    grown = []
    for _ in range(2):
        lateness.add(100)
        grown.append(lateness.target_ms)
    for _ in range(200):
        lateness.add(0)

    assert grown == [0, 105]
    assert lateness.target_ms == 0


def test_a_day_of_packets_loses_no_weight() -> None:
    lateness = Lateness()

    for _ in range(100_000):
        lateness.add(42)

    assert lateness.target_ms == 45


def test_lateness_counts_from_the_fastest_packet() -> None:
    transit = Transit()

    late_ms = [transit.late_ms(sent_s, arrived_s) for sent_s, arrived_s in [(0, 7.1), (0.02, 7.12), (0.04, 7.17)]]

    assert late_ms == pytest.approx([0, 0, 30])


def test_a_path_that_became_longer_and_a_clock_that_drifts_are_not_late_for_long() -> None:
    transit = Transit()
    late_ms = []

    for n in range(500):
        sent_s = n * 0.02
        arrived_s = sent_s * 1.0005 + (0.1 if n < 200 else 0.15)
        late_ms.append(transit.late_ms(sent_s, arrived_s))

    assert late_ms[210] == pytest.approx(50, abs=2)
    assert max(late_ms[320:]) < 2
