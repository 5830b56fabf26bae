"""A small load on a real server, in processes of their own."""

import argparse
import asyncio
import os
import signal
from typing import Any

import numpy as np
import pytest

from media_server.audio.chunk import SPEAKING_HZ
from media_server.audio.jitter import RtpSound
from media_server.caller.chirp import chirps
from media_server.caller.load import add_load_arguments, run_load
from media_server.caller.measuring import Came, Load, LoadReport, Mouth, encode, hum_with_pauses
from media_server.caller.network import Conditions
from media_server.caller.server_processes import listening_on
from media_server.errors import PeerGoneError
from tests.servers import media_processes, server

ECHO = '[call]\nmode = "echo"\n'


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_load_arguments(parser)
    return parser.parse_args(arguments)


async def loaded(url: str, calls: int = 3, conditions: Conditions | None = None) -> LoadReport:
    load = Load(url, calls, hum_with_pauses(), conditions or Conditions(), rate=0, pids=None)
    return await load.run(3.0)


@pytest.mark.e2e
@pytest.mark.timeout(60)
async def test_every_call_comes_up_and_the_echo_is_measured() -> None:
    async with server(ECHO) as url:
        report = await loaded(url)

    # A machine that stands still in between sends fewer than 3 x 3 x 50, but no more.
    assert (report.calls, report.failures) == (3, [])
    assert 225 < report.packets <= 456
    assert report.lost_share == 0
    assert report.mouth_to_ear_ms.p50 is not None
    assert report.mouth_to_ear_ms.p50 > 5
    assert report.setup_ms.p50 is not None
    assert report.server_cpu_ms_per_call_second is not None
    assert report.server_cpu_ms_per_call_second > 0


@pytest.mark.e2e
@pytest.mark.timeout(60)
async def test_a_bad_network_delays_the_echo_on_both_ways() -> None:
    async with server(ECHO) as url:
        clean = await loaded(url, 1)
        late = await loaded(url, 1, Conditions(delay_ms=150))

    assert clean.mouth_to_ear_ms.p50 is not None
    assert late.mouth_to_ear_ms.p50 is not None
    assert late.mouth_to_ear_ms.p50 - clean.mouth_to_ear_ms.p50 > 225


@pytest.mark.e2e
@pytest.mark.timeout(60)
async def test_a_process_of_the_server_that_dies_is_told_and_its_calls_are_no_success() -> None:
    async with server(ECHO + "[server]\nworkers = 2\n") as url:
        load = Load(url, 4, hum_with_pauses(), Conditions(), rate=0, pids=None)
        measuring = asyncio.create_task(load.run(6.0))
        await load.measuring.wait()
        os.kill(media_processes(url)[1], signal.SIGKILL)
        report = await measuring

    assert report.calls < 4
    assert report.failures.count(f"{url}: nothing came any more") == 4 - report.calls
    assert f"{url}: 1 processes of the server ended while it was measured" in report.failures
    assert report.server_cpu_ms_per_call_second is None
    assert report.rss_mb_per_call is None


@pytest.mark.e2e
@pytest.mark.timeout(60)
async def test_calls_beyond_the_servers_limit_are_failures_with_their_reason() -> None:
    async with server(ECHO + "[server]\nmax_calls = 2\n") as url:
        report = await loaded(url)

    assert report.calls == 2
    assert len(report.failures) == 1
    assert "503: all places are taken (server.max_calls = 2)" in report.failures[0]


async def test_where_nobody_answers_the_load_says_so() -> None:
    with pytest.raises(PeerGoneError, match=r"no call came up: .* nobody answers there"):
        await loaded("http://127.0.0.1:9")


def test_a_file_that_cannot_be_read_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_load(parse("--url", "http://127.0.0.1:9", "--file", "nowhere.wav")) == 2
    assert "nowhere.wav" in capsys.readouterr().err


def test_a_load_that_fails_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_load(parse("--url", "http://127.0.0.1:9", "--calls", "1", "--seconds", "1")) == 1
    assert "parley load: no call came up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--pid", "99999999999"),
        ("--pid", "99999999"),
        ("--calls", "0"),
        ("--loss", "1"),
        ("--burst", "0.5"),
        ("--jitter", "-1"),
        ("--seconds", "inf"),
    ],
)
def test_wrong_amounts_are_wrong_use(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--url", "http://127.0.0.1:9", *wrong)

    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--burst", "3"), "--burst is the length of losses: wanted --loss SHARE with it"),
        (("--burst", "1"), "--burst is the length of losses: wanted --loss SHARE with it"),
        (("--loss", "0.8"), "--loss 0.8 is lost in runs of 4 on average, or longer: wanted such a --burst"),
        (("--loss", "0.8", "--burst", "3"), "--loss 0.8 is lost in runs of 4 on average, or longer"),
    ],
)
def test_losses_that_cannot_be_are_wrong_use(
    wrong: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_load(parse("--url", "http://127.0.0.1:9", *wrong)) == 2
    assert told in capsys.readouterr().err


def echoed(late_ms: dict[int, float], lost: set[int], *, anew: int = 250) -> Mouth:
    """Return one that said five seconds of chirps, and heard each packet 100 ms later or later still.

    Args:
        late_ms: how much later, by the packet's number.
        lost: numbers of packets.
        anew: from this packet on the timestamps are others.
    """
    mouth = Mouth()
    payloads = encode(chirps(5, SPEAKING_HZ), 0)
    arrivals = []
    for n, payload in enumerate(payloads):
        mouth.said(n, n * 0.02)
        if n not in lost:
            timestamp = n * 960 + (1 << 32) - 100_000 + (1_000_000_000 if n >= anew else 0)
            packet = RtpSound(1, n, timestamp % (1 << 32), payload)
            arrivals.append((n * 0.02 + 0.1 + late_ms.get(n, 0.0) / 1000, n, packet))
    for at_s, _, packet in sorted(arrivals):
        mouth.heard(packet, at_s)
    return mouth


def test_a_chirp_is_as_late_as_the_packet_in_which_it_begins() -> None:
    late_ms = {n: n * 7 % 5 * 10 for n in range(250)} | {50: 30.0, 100: 60.0, 150: 0.0}

    delays_ms = echoed(late_ms, lost=set()).delays_ms(1.0, 5.0)

    # The encoder looks 6.5 ms ahead.
    assert delays_ms == pytest.approx([136.5, 166.5, 106.5], abs=0.5)


def test_a_chirp_is_found_though_its_last_packet_was_lost_and_not_if_all_were() -> None:
    delays_ms = echoed({}, lost={54, *range(100, 106)}).delays_ms(1.0, 5.0)

    assert delays_ms == pytest.approx([106.5, 106.5], abs=0.5)


def test_timestamps_that_begin_anew_hide_one_chirp_alone() -> None:
    delays_ms = echoed({}, lost=set(), anew=75).delays_ms(1.0, 5.0)

    assert delays_ms == pytest.approx([106.5, 106.5], abs=0.5)


def test_who_heard_nothing_has_no_delays() -> None:
    assert echoed({}, lost=set(range(250))).delays_ms(1.0, 5.0) == []


class Arrivals:
    """What came to a caller, made up."""

    def __init__(self, late_s: dict[int, float], lost: set[int]) -> None:
        came = [n for n in range(100) if n not in lost]
        self.arrivals_s = [n * 0.02 + late_s.get(n, 0.0) for n in came]
        self.timestamps = [(n * 960 + (1 << 32) - 5_000) % (1 << 32) for n in came]
        self.sequence = [(n + 65_500) % 65_536 for n in came]


def test_late_and_lost_packets_are_counted_across_the_wrap() -> None:
    caller: Any = Arrivals({10: 0.025, 20: 0.015, 30: 0.1}, {40, 41, 50})

    came = Came(caller, 0.0, 2.0)

    assert (came.n, came.expected, came.n_late) == (97, 100, 2)
    assert came.left_s < 0.1


def test_what_a_server_that_falls_silent_does_not_send_is_lost() -> None:
    caller: Any = Arrivals({}, set())

    came = Came(caller, 1.0, 7.0)

    assert came.left_s == pytest.approx(5.02)
    assert (came.n, came.expected) == (50, 50 + 251)


def test_a_server_that_sends_only_speech_has_not_left_when_it_is_silent() -> None:
    caller: Any = Arrivals(dict.fromkeys(range(50, 100), 3.0), set())

    came = Came(caller, 0.0, 10.0)

    assert (came.n, came.expected, came.left_s) == (100, 100, 0.0)


def test_sound_shorter_than_a_packet_fills_one() -> None:
    assert len(encode(np.ones(10, dtype=np.int16), 0)) == 1


def test_a_hum_speaks_two_fifths_of_the_time() -> None:
    hum = hum_with_pauses()

    assert len(hum) == 240_000
    assert np.mean(hum != 0) == pytest.approx(0.4, abs=0.01)


def test_another_machines_server_has_no_processes_here() -> None:
    assert listening_on("http://192.0.2.1:8080") == []
