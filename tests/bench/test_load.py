"""What two workers carry against one is told honestly."""

from dataclasses import replace

import pytest

from tests.bench.load import Saturated, saturated, sentences, without_callers
from tests.bench.test_under_load import REPORT
from tests.bench.under_load import Loaded

ONE = Saturated(calls=200, sure=True, server_cores=0.9, caller_cores=0.4)
TWO = Saturated(calls=240, sure=True, server_cores=1.4, caller_cores=0.5)


def test_what_the_callers_took_of_two_workers_is_taken_off() -> None:
    # One has a core of its own beside the callers' 0.4; two have 1.5 of the 2 that they could use: 240 / 0.75 = 320.
    assert without_callers(ONE, TWO, 2) == pytest.approx(1.6)


def test_where_there_are_cores_enough_nothing_is_taken_off() -> None:
    assert without_callers(ONE, TWO, 8) == pytest.approx(1.2)


@pytest.mark.parametrize("one", [replace(ONE, calls=0), replace(ONE, sure=False), replace(ONE, caller_cores=2.0)])
def test_without_a_most_there_is_no_ratio(one: Saturated) -> None:
    assert without_callers(one, TWO, 2) is None
    assert "not known" in sentences(one, TWO, 2)[-1]


def test_the_ratio_is_told_as_measured_and_with_the_callers_taken_off() -> None:
    *_, last = sentences(ONE, TWO, 2)

    assert "1.20 as measured" in last
    assert "at most 1.60" in last


def test_a_server_is_saturated_only_if_more_was_too_much() -> None:
    carried = Loaded(calls=10, report=REPORT)
    late = Loaded(calls=20, report=replace(REPORT, calls=20, late_over_20ms_share=0.3))

    assert saturated({10: carried}) == Saturated(calls=10, sure=False, server_cores=0.5, caller_cores=0.05)
    assert saturated({10: carried, 20: late}).sure
    assert saturated({20: late}).calls == 0
