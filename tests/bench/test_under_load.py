"""What comes of a load is read, judged, and decides how many calls are tried next."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

import pytest

from media_server.caller.measuring import LoadReport, Percentiles
from media_server.caller.network import Conditions
from media_server.errors import PeerGoneError
from tests.bench.under_load import Loaded, empty_row, load_fresh, most_carried, next_calls, read_report, row, rows

LADDER = (1, 10)

REPORT = LoadReport(
    url="http://127.0.0.1:9/offer",
    calls=10,
    seconds=4.0,
    failures=[],
    server_cpu_ms_per_call_second=50.0,
    rss_mb_per_call=None,
    server_threads=7,
    late_over_20ms_share=0.002,
    lost_share=0.0,
    packets=2_000,
    chirps=3,
    chirps_heard=3,
    mouth_to_ear_ms=Percentiles(p50=30.0, p95=40.0, p99=41.0),
    setup_ms=Percentiles(p50=None, p95=None, p99=None),
    caller_cpu_ms_per_call_second=5.0,
    conditions=Conditions(),
)


def tries(carries: Callable[[int], bool], limit: int = 400) -> list[int]:
    """Return the numbers of calls that are tried on a server."""
    tried: dict[int, bool] = {}
    while (calls := next_calls(tried, LADDER, limit)) is not None:
        assert calls not in tried
        tried[calls] = carries(calls)
    return list(tried)


def test_calls_are_doubled_until_they_are_too_many_and_then_halved_towards_the_most() -> None:
    assert tries(lambda calls: calls <= 26) == [1, 10, 20, 40, 30, 25, 27]


def test_a_peer_that_carries_fewer_than_the_ladder_is_found_below_it() -> None:
    assert tries(lambda calls: calls <= 6) == [1, 10, 5, 7, 6]


def test_a_server_that_carries_nothing_is_not_tried_further() -> None:
    assert tries(lambda _: False) == [1]


def test_no_more_than_the_limit_is_tried() -> None:
    assert tries(lambda _: True, limit=50) == [1, 10, 20, 40, 50]


def test_fewer_calls_that_failed_do_not_count_against_more_that_were_carried() -> None:
    tried = {1: True, 10: False, 20: True}

    assert most_carried(tried) == 20
    assert next_calls(tried, LADDER, 400) == 40


def test_a_report_is_read_as_it_was_written() -> None:
    assert read_report(json.dumps(asdict(REPORT))) == REPORT


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (REPORT, ""),
        (replace(REPORT, late_over_20ms_share=0.01), "late"),
        (replace(REPORT, late_over_20ms_share=None), "late"),
        (replace(REPORT, packets=1_900), "packets left out"),
        (replace(REPORT, chirps=3, chirps_heard=2), ""),
        (replace(REPORT, chirps=3, chirps_heard=1), "sound left out"),
        (replace(REPORT, chirps=60, chirps_heard=57), ""),
        (replace(REPORT, chirps=60, chirps_heard=56), "sound left out"),
        (replace(REPORT, failures=["refused"]), "1 of 11 failed: refused"),
        (None, "1 of 11 failed: refused"),
    ],
)
def test_calls_are_carried_if_none_failed_and_few_packets_are_late_or_left_out(
    report: LoadReport | None, why: str
) -> None:
    loaded = Loaded(calls=11, report=report, why="1 of 11 failed: refused")

    assert loaded.too_much == why
    assert loaded.carried == (not why)


def test_cores_are_those_of_all_calls_that_were_up() -> None:
    loaded = Loaded(calls=12, report=REPORT)

    assert (loaded.server_cores, loaded.caller_cores) == (0.5, 0.05)


def test_the_most_calls_that_were_carried_are_marked_and_what_was_too_much_says_why() -> None:
    late = replace(REPORT, calls=20, late_over_20ms_share=0.3, packets=4_000)

    found = rows("ours", {20: Loaded(calls=20, report=late), 10: Loaded(calls=10, report=REPORT)})

    assert [(each["calls"], each["late"], each["note"]) for each in found] == [
        (10, "0.20%", "most carried"),
        (20, "30.00%", "late"),
    ]


def test_what_could_not_be_measured_fits_into_the_same_table() -> None:
    found = [row("ours", Loaded(calls=10, report=REPORT)), empty_row("theirs", "-", "pip found no such version")]

    assert list(found[0]) == list(found[1])
    assert found[0]["memory"] == found[1]["memory"] == "-"
    assert found[1]["note"] == "pip found no such version"


async def test_a_server_that_does_not_start_carries_no_call() -> None:
    @asynccontextmanager
    async def serve() -> AsyncGenerator[str, None]:
        raise PeerGoneError("it ended at once\nImportError: no module")
        yield ""

    loaded = await load_fresh(serve, 5, seconds=1, rate=0)

    assert loaded == Loaded(calls=5, report=None, why="ImportError: no module")


async def test_a_load_that_no_call_survives_says_why() -> None:
    @asynccontextmanager
    async def serve() -> AsyncGenerator[str, None]:
        yield "http://127.0.0.1:9"

    loaded = await load_fresh(serve, 1, seconds=1, rate=0)

    assert loaded.report is None
    assert "nobody answers there" in loaded.why
