"""The whole command `parley load`, as it is typed, on our own server and on another's."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from media_server.caller.server_processes import ServerProcesses, listening_on
from tests.bench.peers.peer import AIORTC
from tests.servers import server

pytestmark = pytest.mark.e2e

TWO_WORKERS = '[call]\nmode = "echo"\n[server]\nworkers = 2\n'
FIELDS = {
    "url",
    "calls",
    "seconds",
    "failures",
    "server_cpu_ms_per_call_second",
    "rss_mb_per_call",
    "server_threads",
    "late_over_20ms_share",
    "lost_share",
    "packets",
    "chirps",
    "chirps_heard",
    "mouth_to_ear_ms",
    "setup_ms",
    "caller_cpu_ms_per_call_second",
    "conditions",
}


async def load(url: str, out: Path, arguments: str) -> Any:
    """Run the command, which has to succeed; return what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signaling", "load", "--url", url, "--json", str(out), *arguments.split()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()
    return json.loads(out.read_text(encoding="utf-8"))


async def test_a_bad_network_and_all_processes_of_the_server_show_in_the_figures(tmp_path: Path) -> None:
    bad = "--loss 0.05 --burst 2 --delay 60 --jitter 40 --reorder 0.05 --seed 7"
    async with server(TWO_WORKERS) as url:
        report = await load(url, tmp_path / "bad.json", f"--calls 4 --seconds 6 --rate 0 {bad}")
        processes = ServerProcesses(listening_on(url))
        workers = [process for process in processes.all() if "--place" in process.cmdline()]
        workers_cpu_s = [sum(process.cpu_times()[:2]) for process in workers]
        all_cpu_s = processes.cpu_s()
        of_one = await load(url, tmp_path / "one.json", f"--calls 1 --seconds 1 --pid {workers[0].pid}")

    assert set(report) == FIELDS
    assert (report["calls"], report["failures"], report["seconds"]) == (4, [], 6)
    assert report["conditions"] == {
        "loss": 0.05,
        "burst": 2.0,
        "delay_ms": 60.0,
        "jitter_ms": 40.0,
        "reorder": 0.05,
        "seed": 7,
    }
    assert 0.01 < report["lost_share"] < 0.12
    assert report["late_over_20ms_share"] > 0.2
    assert set(report["mouth_to_ear_ms"]) == set(report["setup_ms"]) == {"p50", "p95", "p99"}
    assert report["mouth_to_ear_ms"]["p50"] > 120  # the delay of both ways
    assert report["setup_ms"]["p50"] > 0
    assert report["server_cpu_ms_per_call_second"] > 0
    assert report["rss_mb_per_call"] > 0
    assert len(workers) == 2
    assert all_cpu_s is not None
    assert all_cpu_s >= sum(workers_cpu_s) > max(workers_cpu_s)
    assert report["server_threads"] > of_one["server_threads"] > 0


async def test_a_server_that_takes_offers_as_json_is_called_and_measured(tmp_path: Path) -> None:
    async with AIORTC.serving() as url:
        report = await load(url, tmp_path / "aiortc.json", "--calls 2 --seconds 3 --rate 0")

    assert url.endswith("/offer")
    assert (report["calls"], report["failures"]) == (2, [])
    assert report["packets"] > 0
    assert report["mouth_to_ear_ms"]["p50"] > 0
    assert report["setup_ms"]["p50"] > 0
    assert report["server_cpu_ms_per_call_second"] > 0
