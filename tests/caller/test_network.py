import pytest

from media_server.caller.network import Conditions, Network


def arrivals(conditions: Conditions, n: int = 10_000) -> list[float | None]:
    network = Network(conditions)
    return [network.arrival_s(at * 0.02) for at in range(n)]


def test_a_clean_network_does_nothing() -> None:
    assert Conditions().clean
    assert arrivals(Conditions(), 3) == [0.0, 0.02, 0.04]


def test_the_share_of_losses_is_the_one_asked_for() -> None:
    lost = [at_s is None for at_s in arrivals(Conditions(loss=0.1))]

    assert sum(lost) / len(lost) == pytest.approx(0.1, abs=0.01)


def test_losses_come_in_runs_of_the_length_asked_for() -> None:
    lost = "".join("x" if at_s is None else "." for at_s in arrivals(Conditions(loss=0.1, burst=3)))
    runs = [len(run) for run in lost.split(".") if run]

    assert sum(runs) / len(lost) == pytest.approx(0.1, abs=0.02)
    assert sum(runs) / len(runs) == pytest.approx(3, abs=0.3)


def test_jitter_delays_and_keeps_the_order() -> None:
    at_s = [each for each in arrivals(Conditions(delay_ms=50, jitter_ms=80)) if each is not None]

    assert at_s == sorted(at_s)
    late_ms = [(each - n * 0.02) * 1000 for n, each in enumerate(at_s)]
    assert 50 <= min(late_ms) < 55
    assert 125 < max(late_ms) <= 130


def test_the_share_of_packets_that_are_overtaken_is_the_one_asked_for() -> None:
    at_s = [each or 0.0 for each in arrivals(Conditions(reorder=0.2))]
    overtaken = sum(at_s[n] > at_s[n + 1] for n in range(len(at_s) - 1))

    assert overtaken / len(at_s) == pytest.approx(
        0.2 * 0.8, abs=0.02
    )  # one that is followed by another stays behind it


def test_the_same_seed_is_bad_in_the_same_places_and_another_stream_elsewhere() -> None:
    conditions = Conditions(loss=0.1, jitter_ms=40, seed=7)

    assert arrivals(conditions) == arrivals(conditions)
    assert arrivals(conditions) != [Network(conditions, 1).arrival_s(at * 0.02) for at in range(10_000)]
