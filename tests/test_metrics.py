"""Figures are percentiles, and Prometheus reads them."""

import re

import pytest

from media_server.metrics import FIGURES, Metrics


def test_percentiles_are_within_six_percent() -> None:
    metrics = Metrics()

    for value_ms in range(1, 1001):
        metrics.observe("voice_to_voice_ms", value_ms)
    figures = metrics.snapshot()["voice_to_voice_ms"]

    assert figures["count"] == 1000
    assert figures["p50"] == pytest.approx(500, rel=0.06)
    assert figures["p95"] == pytest.approx(950, rel=0.06)
    assert figures["p99"] == pytest.approx(990, rel=0.06)
    assert figures["max"] == 1000


def test_one_duration_is_its_own_percentile() -> None:
    metrics = Metrics()

    metrics.observe("loop_lag_ms", 7.0)

    assert metrics.snapshot()["loop_lag_ms"] == {"count": 1, "p50": 7.0, "p95": 7.0, "p99": 7.0, "max": 7.0}


def test_no_duration_has_no_percentile() -> None:
    assert Metrics().snapshot()["asr_final_ms"] == {"count": 0, "p50": None, "p95": None, "p99": None, "max": None}


@pytest.mark.parametrize("value_ms", [-1.0, 0.0, 1e-9, 1e9])
def test_a_duration_outside_of_the_buckets_is_counted(value_ms: float) -> None:
    metrics = Metrics()

    metrics.observe("loop_lag_ms", value_ms)

    assert metrics.snapshot()["loop_lag_ms"]["count"] == 1
    assert 'parley_loop_lag_ms_bucket{le="+Inf"} 1' in metrics.render()


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    metrics = Metrics()

    for value_ms in (1.0, 2.0, 2.1, 4.0, 65536.0):
        metrics.observe("endpointing_ms", value_ms)
    lines = metrics.render().splitlines()

    assert 'parley_endpointing_ms_bucket{le="1"} 1' in lines
    assert 'parley_endpointing_ms_bucket{le="2"} 2' in lines
    assert 'parley_endpointing_ms_bucket{le="4"} 4' in lines
    assert 'parley_endpointing_ms_bucket{le="+Inf"} 5' in lines
    assert "parley_endpointing_ms_sum 65545.1" in lines
    assert "parley_endpointing_ms_count 5" in lines


def test_counters_grow_and_gauges_are_set() -> None:
    metrics = Metrics()

    metrics.count("live_dropped_ms", 20.0)
    metrics.count("live_dropped_ms", 40.0)
    metrics.gauge("calls_active", 3)
    metrics.gauge("calls_active", 2)

    assert metrics.snapshot()["live_dropped_ms"] == 60.0
    assert metrics.snapshot()["calls_active"] == 2
    assert "# TYPE parley_calls_active gauge\nparley_calls_active 2\n" in metrics.render()
    assert "# TYPE parley_live_dropped_ms counter\nparley_live_dropped_ms 60\n" in metrics.render()


def test_every_line_is_one_that_prometheus_knows() -> None:
    sample = re.compile(r'parley_[a-z0-9_]+(\{le="[0-9.e+A-Za-z]+"\})? -?[0-9.e+]+')
    comment = re.compile(r"# (HELP parley_[a-z0-9_]+ .+|TYPE parley_[a-z0-9_]+ (histogram|counter|gauge))")

    lines = Metrics().render().splitlines()

    assert [line for line in lines if not sample.fullmatch(line) and not comment.fullmatch(line)] == []
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(FIGURES)


def test_an_undeclared_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown figure 'latency'"):
        Metrics().observe("latency", 1.0)


def test_a_figure_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="calls_active is a gauge, used as a counter"):
        Metrics().count("calls_active")
