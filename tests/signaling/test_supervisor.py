"""Two media processes behind one port."""

import asyncio
import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from media_server.caller.client import CallClient
from media_server.caller.demo import running_server
from media_server.caller.tether import start_tethered
from media_server.errors import AddressError, PeerGoneError, ServerFullError
from signaling.board import Board
from signaling.shared_folder import BOARD, remove_abandoned
from signaling.supervisor import Supervisor, hold_port, usable_cores
from tests.servers import media_processes, server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

TWO = "[server]\nworkers = 2\nmax_calls = 3\n[call]\ngreeting = false\n"


def model_workers(url: str) -> list[psutil.Process]:
    """Return the processes with models of the server that listens there."""
    supervisor = psutil.Process(media_processes(url)[0]).parent()
    assert supervisor is not None
    found = supervisor.children(recursive=True)
    return [process for process in found if "media_server.engines.workers.child" in process.cmdline()]


async def health(url: str) -> dict[str, object]:
    async with aiohttp.ClientSession(raise_for_status=True) as http, http.get(f"{url}/health") as response:
        answer: dict[str, object] = await response.json()
        return answer


async def all_ready(url: str) -> None:
    async with asyncio.timeout(30):
        while (await health(url))["processes"] != {"ready": 2, "of": 2}:  # noqa: ASYNC110 - asked, it tells
            await asyncio.sleep(0.05)


async def test_calls_are_spread_over_the_processes_and_counted_together() -> None:
    async with server(TWO) as url:
        await all_ready(url)
        async with CallClient(url) as one, CallClient(url) as two, CallClient(url):
            processes = sorted(call.call_id[4:6] for call in (one, two))
            calls = (await health(url))["calls"]
            with pytest.raises(ServerFullError):
                await CallClient(url).__aenter__()
        after = (await health(url))["calls"]

    assert processes == ["00", "01"]
    assert (calls, after) == (3, 0)


async def test_a_process_that_dies_takes_its_own_calls_and_is_replaced() -> None:
    async with server(TWO) as url:
        await all_ready(url)
        async with CallClient(url) as one, CallClient(url) as two:
            before = media_processes(url)
            dead = int(one.call_id[4:6], 16)
            os.kill(before[dead], signal.SIGKILL)
            two.say_in_writing("a large latte")
            answered = await two.wait_for(lambda event: event["type"] == "response.done", 10)
            await all_ready(url)
            after = media_processes(url)
            calls = (await health(url))["calls"]

    assert answered.event["response"]["status"] == "completed"
    assert after[dead] != before[dead]
    assert after[1 - dead] == before[1 - dead]
    assert calls == 1


async def test_while_a_process_is_replaced_the_server_is_healthy_and_its_counters_do_not_fall() -> None:
    async with server(TWO) as url:
        await all_ready(url)
        async with CallClient(url) as one, CallClient(url), aiohttp.ClientSession(raise_for_status=True) as http:
            before = await calls_begun(http, url)
            dead = psutil.Process(media_processes(url)[int(one.call_id[4:6], 16)])
            dead.kill()
            await asyncio.to_thread(psutil.wait_procs, [dead])
            meanwhile = [await calls_begun(http, url)]
            await all_ready(url)
            after = [await calls_begun(http, url) for _ in range(10)]

    assert before == 2
    assert {*meanwhile, *after} == {2}


async def calls_begun(http: aiohttp.ClientSession, url: str) -> float:
    """Return how many calls the server has counted, asked over a new connection: any of its processes may answer."""
    async with http.get(f"{url}/metrics", headers={"Connection": "close"}) as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("parley_calls_total "))


async def test_models_are_loaded_once_for_all_processes() -> None:
    async with server(TWO) as url:
        await all_ready(url)

        assert len(model_workers(url)) == 2  # a recogniser and a voice


async def test_a_model_worker_that_dies_costs_no_call_in_any_process() -> None:
    async with server(TWO) as url:
        await all_ready(url)
        async with CallClient(url) as one, CallClient(url) as two:
            workers = model_workers(url)
            for worker in workers:
                worker.kill()
            await asyncio.to_thread(psutil.wait_procs, workers)
            for call in (one, two):
                call.say_in_writing("a large latte")
            answers = [await call.wait_for(lambda event: event["type"] == "response.done", 10) for call in (one, two)]

    assert [answer.event["response"]["status"] for answer in answers] == ["completed", "completed"]


async def test_nothing_outlives_a_supervisor_that_is_killed() -> None:
    async with server(TWO) as url:
        supervisor = psutil.Process(media_processes(url)[0]).parent()
        assert supervisor is not None
        left = supervisor.children(recursive=True)
        supervisor.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, left, 20)

    assert len(left) == 4
    assert alive == []


async def line_with(process: asyncio.subprocess.Process, words: str) -> str:
    """Return the next line with `words` that a process prints."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        async for line in process.stdout:
            if words in line.decode():
                return line.decode().strip()
    raise AssertionError(f"it ended and never said {words!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_a_server_at_once(number: signal.Signals, short_folder: Path) -> None:
    tether = (sys.executable, "-m", "media_server.caller.tether")
    server = await asyncio.create_subprocess_exec(
        *(*tether, "signaling", "serve", "--workers", "2", "--port", "0"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(short_folder)},
    )
    await line_with(server, "ready for calls")
    processes = psutil.Process(server.pid).children(recursive=True)
    next(process for process in processes if "--place" in process.cmdline()).suspend()  # it would not end by itself

    server.send_signal(number)
    said = await line_with(server, "stopping")
    server.send_signal(number)
    status = await server.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 20)

    assert said == "stopping; calls to hang up: 0; a second signal ends them at once"
    assert status == 128 + number
    assert alive == []
    assert list(short_folder.glob("parley-*")) == []


async def test_the_folder_of_a_server_that_was_killed_is_known_and_removed(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    async with server(TWO) as url:
        supervisor = psutil.Process(media_processes(url)[0]).parent()
        assert supervisor is not None
        left = supervisor.children(recursive=True)
        supervisor.kill()
        await asyncio.to_thread(psutil.wait_procs, left, 20)
    folders = list(short_folder.glob("parley-*"))

    remove_abandoned(short_folder)

    assert len(folders) == 1
    assert list(short_folder.glob("parley-*")) == []


async def test_a_server_whose_model_cannot_be_loaded_ends_and_says_why_once() -> None:
    no_grammar = '[server]\nworkers = 2\n[asr]\nsphinx_grammar = "/nowhere.jsgf"\n'

    with pytest.raises(PeerGoneError) as caught:
        async with server(no_grammar):
            pass

    said = [line for line in str(caught.value).splitlines() if line.startswith("parley:")]
    assert "ended at once with status 2" in str(caught.value)
    assert said == ["parley: '/nowhere.jsgf': cannot be read: No such file or directory"]


async def test_a_server_whose_processes_cannot_begin_ends_and_says_why() -> None:
    nowhere = '[server]\nworkers = 2\n[llm]\nengine = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'

    with pytest.raises(PeerGoneError, match=r"(?s)ended at once with status 1.*127\.0\.0\.1:9"):
        async with server(nowhere):
            pass


class NoWorkers:
    """No models are shared."""

    async def run(self) -> None:
        """Run until cancelled."""
        await asyncio.get_running_loop().create_future()

    async def load(self) -> None:
        """Be ready."""


class Starts:
    """Stands for `start_tethered`: what it starts is ready, beats once, and waits. Some starts fail."""

    def __init__(self, failing: int | None = None) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self._failing = failing
        self._tries = 0

    async def __call__(self, *arguments: str) -> asyncio.subprocess.Process:
        self._tries += 1
        if self._tries == self._failing:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        index, n, _, folder = arguments[-1].split(",", 3)
        board = Board(Path(folder) / BOARD, int(n))
        board.write(int(index), calls=0, ready=True)
        board.beat(int(index))
        self.processes.append(await start_tethered("timeit", "-n1", "-r1", "import time; time.sleep(60)"))
        return self.processes[-1]

    async def reached(self, n: int) -> None:
        """Wait until so many have been started."""
        async with asyncio.timeout(20):
            while len(self.processes) < n:  # noqa: ASYNC110 - a process tells nobody
                await asyncio.sleep(0.01)


@asynccontextmanager
async def supervising(starts: Starts, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Have one media process kept; it is ended by the end of the block."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("signaling.supervisor.start_tethered", starts)
    supervisor = Supervisor([], 1, "127.0.0.1", 0, lambda _: NoWorkers(), lambda _: None)
    running = asyncio.create_task(supervisor.run())
    try:
        yield
    finally:
        supervisor._stop(0)
        assert await running == 0


async def test_a_process_that_cannot_be_started_again_just_now_costs_no_other(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = Starts(failing=2)

    async with supervising(starts, short_folder, monkeypatch):
        await starts.reached(1)
        starts.processes[0].kill()
        await starts.reached(2)

    assert "media process 0 cannot be started: [Errno 11] Resource temporarily unavailable" in caplog.text


async def test_a_process_that_hangs_is_killed_and_replaced(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("signaling.supervisor.WATCH_S", 0.01)
    starts = Starts()

    async with supervising(starts, short_folder, monkeypatch):
        await starts.reached(2)

    assert starts.processes[0].returncode == -signal.SIGKILL
    assert "media process 0 has not answered for 0 s and is killed" in caplog.text


async def test_a_port_that_is_taken_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(AddressError, match=rf"^cannot listen on 127.0.0.1:{port}: .*; wanted a free --port"):
            hold_port("127.0.0.1", port)


async def test_a_shared_port_is_taken_for_a_second_server() -> None:
    held = hold_port("127.0.0.1", 0)
    port = held.getsockname()[1]
    with held, socket.socket() as sharing:
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("127.0.0.1", port))
        sharing.listen()

        with pytest.raises(AddressError):
            hold_port("127.0.0.1", port)


async def test_all_processes_end_with_the_server() -> None:
    async with running_server(workers=1) as url:
        assert media_processes(url) == {}
    async with server(TWO) as url:
        pids = list(media_processes(url).values())

    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_cores_are_those_that_we_may_run_on(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        cores = usable_cores(tmp_path / "not-there")
    finally:
        os.sched_setaffinity(0, before)

    assert cores == 1
    assert usable_cores(tmp_path / "not-there") == len(before)


@pytest.mark.parametrize(("quota", "cores"), [("max", 99), ("100000", 1), ("50000", 1)])
def test_a_quota_of_a_container_is_heard(tmp_path: Path, quota: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota} 100000\n")

    assert usable_cores(file) == min(cores, len(os.sched_getaffinity(0)))
