"""Model workers: many streams in a process, and what the death of one costs."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from media_server.engines.workers import process
from media_server.engines.workers.frames import HEADER, WINDOW_BYTES, Frame, Kind, pack, take_frames
from media_server.engines.workers.link import WorkerStream
from media_server.engines.workers.pool import WorkerPool
from media_server.engines.workers.process import RESTARTS_MAX, Limits, WorkerProcess
from media_server.errors import ConfigError, EngineDownError, EngineError, EngineMissingError

pytestmark = pytest.mark.models  # it starts processes, as those that load models do

ECHO = "tests.engines.echo_model:EchoModel"
NO_PAUSE = Limits(backoff_s=0.001)


def echo_pool(
    options: dict[str, Any] | None = None, *, limits: Limits = NO_PAUSE, count: int = 1, streams_max: int = 64
) -> WorkerPool:
    """Return a pool of echoes that loses no time between a death and the next start."""
    return WorkerPool("echo", ECHO, options or {}, count=count, streams_max=streams_max, limits=limits)


@asynccontextmanager
async def running(pool: WorkerPool) -> AsyncGenerator[WorkerPool, None]:
    """Run a pool as the app does."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())
        try:
            await pool.load()
            yield pool
        finally:
            await pool.close()


async def finish(stream: WorkerStream) -> dict[str, Any]:
    """End a stream and return the note of its last reply."""
    stream.end()
    note: dict[str, Any] = {}
    while (reply := await stream.get()) is not None:
        note = reply.note
    return note


async def echo(pool: WorkerPool, body: bytes = b"hello", **request: Any) -> dict[str, Any]:
    """Serve one request from beginning to end."""
    async with pool.open(request) as stream:
        await stream.send(body)
        return await finish(stream)


def test_frames_are_found_wherever_the_bytes_are_cut() -> None:
    sent = pack(1, Kind.DATA, {"a": "ü"}, b"body") + pack(2, Kind.END)
    for cut in range(len(sent)):
        unread = bytearray(sent[:cut])

        frames = take_frames(unread)
        unread += sent[cut:]
        frames += take_frames(unread)

        assert frames == [Frame(1, Kind.DATA, {"a": "ü"}, b"body"), Frame(2, Kind.END, {}, b"")]
        assert not unread


def test_a_frame_that_says_it_is_huge_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="at most 4194304 bytes, got 4294967295"):
        take_frames(bytearray(HEADER.pack(1, Kind.DATA, 0, 2**32 - 1)))


async def test_replies_come_in_order_and_then_none() -> None:
    async with running(echo_pool()) as pool, pool.open({}) as stream:
        await stream.send(b"one")
        await stream.send(b"two")
        stream.end()

        bodies = [reply.body for _ in range(3) if (reply := await stream.get())]

        assert bodies == [b"one", b"two", b""]
        assert await stream.get() is None


async def test_what_the_model_says_of_itself_is_known_after_load() -> None:
    async with running(echo_pool()) as pool:
        assert pool.about == {"walls": 4}
        assert pool.state == "up"


async def test_many_streams_share_a_worker() -> None:
    async with running(echo_pool()) as pool:
        notes = await asyncio.gather(*(echo(pool, bytes(n)) for n in range(1, 41)))

        assert [note["heard_bytes"] for note in notes] == list(range(1, 41))


async def test_streams_are_spread_over_the_workers() -> None:
    async with running(echo_pool(count=2)) as pool, pool.open({"do": "die"}) as first, pool.open({}) as second:
        with pytest.raises(EngineError):
            await finish(first)

        assert await finish(second) == {"heard_bytes": 0, "closed": 0}
        assert pool.state in {"degraded", "up"}


async def test_input_far_longer_than_the_window_goes_through() -> None:
    async with running(echo_pool()) as pool:
        assert (await echo(pool, bytes(5 * WINDOW_BYTES)))["heard_bytes"] == 5 * WINDOW_BYTES


async def test_a_sender_waits_for_a_worker_that_does_not_keep_up() -> None:
    async with (
        running(echo_pool(limits=Limits(stall_s=0.2, backoff_s=0.001))) as pool,
        pool.open({"do": "hang"}) as stream,
    ):
        await stream.send(bytes(WINDOW_BYTES // 2))

        with pytest.raises(EngineError, match="the worker ended"):
            await stream.send(bytes(WINDOW_BYTES))


async def test_a_worker_that_hangs_is_killed_and_the_next_one_serves() -> None:
    async with running(echo_pool(limits=Limits(stall_s=0.2, backoff_s=0.001))) as pool:
        before = pool.process_ids

        with pytest.raises(EngineError, match="the worker ended"):
            await echo(pool, do="hang")

        assert (await echo(pool))["heard_bytes"] == 5
        assert pool.process_ids != before


async def test_a_killed_worker_costs_its_streams_and_the_next_request_is_served() -> None:
    async with running(echo_pool()) as pool, pool.open({}) as stream:
        os.kill(pool.process_ids[0], signal.SIGKILL)

        with pytest.raises(EngineError, match="the worker ended in the middle of this request"):
            await stream.get()

        assert (await echo(pool))["heard_bytes"] == 5


async def test_when_the_fifth_restart_in_a_row_has_died_the_pool_is_down() -> None:
    async with running(echo_pool()) as pool:
        for _ in range(1 + RESTARTS_MAX):
            with pytest.raises(EngineError, match="the worker ended"):
                await echo(pool, do="die")

        with pytest.raises(EngineDownError, match="died 6 times in a row, last with status 3"):
            await echo(pool)
        assert pool.state == "down"


async def test_a_pool_that_is_down_is_tried_again_and_serves(tmp_path: Path) -> None:
    die = tmp_path / "die"
    die.touch()
    pool = echo_pool({"load": "die", "while": str(die)}, limits=Limits(backoff_s=0.001, retry_s=0.001))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())
        with pytest.raises(EngineDownError):
            await pool.load()

        die.unlink()
        async with asyncio.timeout(10):
            while pool.state != "up":  # noqa: ASYNC110 - a pool that is down has no waiters
                await asyncio.sleep(0)

        assert (await echo(pool))["heard_bytes"] == 5
        assert pool.why_down is None
        await pool.close()


async def test_a_worker_that_stays_down_for_days_is_tried_again_as_on_the_first() -> None:
    worker = WorkerProcess("echo", {}, Limits(retry_s=60), asyncio.Event())

    for _ in range(2_000):
        worker._count_death(asyncio.get_running_loop().time(), "status 3", in_a_row=True)

    assert worker.until_next_s() == pytest.approx(60, abs=1)
    assert "died 2000 times in a row" in str(worker.down)


async def test_a_worker_that_is_killed_because_it_does_not_load_has_died_in_a_row_however_long_that_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "STEADY_S", 0.0)
    pool = echo_pool({"load": "hang"}, limits=Limits(load_s=0.1, backoff_s=0.001))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())
        async with asyncio.timeout(20):
            while pool.state != "down":  # noqa: ASYNC110 - nobody but `open` and `load` is told
                await asyncio.sleep(0)

        await pool.close()


async def test_a_machine_without_room_for_a_worker_costs_deaths_and_not_the_supervision() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pool = echo_pool(limits=Limits(backoff_s=0.001, retry_s=0.001))
    async with asyncio.TaskGroup() as tasks:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            tasks.create_task(pool.run())
            with pytest.raises(EngineDownError, match=r"died 6 times in a row, last with .*Too many open files"):
                await pool.load()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(10):
            while pool.state != "up":  # noqa: ASYNC110 - a pool that is down has no waiters
                await asyncio.sleep(0)

        await pool.close()


@asynccontextmanager
async def deaf(pool: WorkerPool) -> AsyncGenerator[int, None]:
    """Lose a worker that does not see that its socket is closed; give the process's id."""
    (process_id, *_) = pool.process_ids
    os.kill(process_id, signal.SIGSTOP)
    async with pool.open({}) as stream:
        stream._link.abort()
        while process_id in pool.process_ids:  # noqa: ASYNC110 - the loss of a socket has no event here
            await asyncio.sleep(0)
        yield process_id


async def test_a_worker_that_does_not_end_holds_up_no_other() -> None:
    async with running(echo_pool(count=2, limits=Limits(backoff_s=0.001, end_s=60))) as pool, deaf(pool) as deaf_id:
        (other_id,) = pool.process_ids
        os.kill(other_id, signal.SIGKILL)
        while other_id in pool.process_ids:  # noqa: ASYNC110
            await asyncio.sleep(0)

        assert (await echo(pool))["heard_bytes"] == 5
        os.kill(deaf_id, signal.SIGKILL)  # it was still there


async def test_a_worker_that_does_not_end_is_killed_and_the_next_one_serves() -> None:
    async with running(echo_pool(limits=Limits(backoff_s=0.001, end_s=0.05))) as pool, deaf(pool) as deaf_id:
        assert (await echo(pool))["heard_bytes"] == 5
        with pytest.raises(ProcessLookupError):
            os.kill(deaf_id, 0)


async def test_cancelled_while_a_worker_does_not_end_the_pool_kills_it() -> None:
    pool = echo_pool(limits=Limits(end_s=0.05))
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(pool.run())
        await pool.load()
        async with deaf(pool) as deaf_id:
            run.cancel()

    with pytest.raises(ProcessLookupError):
        os.kill(deaf_id, 0)


async def test_a_request_that_waits_while_the_pool_goes_down_is_told() -> None:
    pool = echo_pool({"load": "die"})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())

        with pytest.raises(EngineDownError, match="died 6 times in a row"):
            await echo(pool)

        await pool.close()


async def test_a_finished_stream_ends_the_row_of_deaths() -> None:
    async with running(echo_pool()) as pool:
        for deaths in (RESTARTS_MAX, 1):
            for _ in range(deaths):
                with pytest.raises(EngineError):
                    await echo(pool, do="die")
            await echo(pool)

        assert pool.state == "up"


async def test_the_pauses_between_the_starts_double(caplog: pytest.LogCaptureFixture) -> None:
    pool = echo_pool({"load": "die"}, limits=Limits(backoff_s=0.002))

    with pytest.raises(ExceptionGroup) as caught:
        async with running(pool):
            pass

    assert caught.group_contains(EngineDownError, match="died 6 times in a row, last with status 3")
    pauses = [record.args[2] for record in caplog.records if isinstance(record.args, tuple) and len(record.args) == 3]
    assert pauses == [0.002, 0.004, 0.008, 0.016, 0.032, 60.0]


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [("config", ConfigError, "expected a wall, found none"), ("missing", EngineMissingError, "install a wall")],
)
async def test_a_model_that_cannot_be_loaded_says_why_and_is_not_tried_again(
    load: str, error: type[Exception], message: str
) -> None:
    pool = echo_pool({"load": load})

    with pytest.raises(ExceptionGroup) as caught:
        async with running(pool):
            pass

    assert caught.group_contains(error, match=message)


async def test_a_request_to_a_model_that_could_not_be_loaded_is_told_why() -> None:
    pool = echo_pool({"load": "missing"})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pool.run())

        with pytest.raises(EngineDownError, match="install a wall"):
            await echo(pool)

        await pool.close()


async def test_a_library_that_is_not_there_is_named() -> None:
    pool = WorkerPool("none", "no_such_library:Model", {})

    with pytest.raises(ExceptionGroup) as caught:
        async with running(pool):
            pass

    assert caught.group_contains(EngineMissingError, match="no_such_library")


async def test_leaving_a_stream_stops_its_work_and_closes_it() -> None:
    async with running(echo_pool()) as pool:
        async with pool.open({"do": "endless"}) as stream:
            stream.end()
            await stream.get()

        assert (await echo(pool))["closed"] == 1


async def test_a_model_is_asked_to_tidy_up_whenever_its_worker_is_asked_whether_it_hangs() -> None:
    async with running(echo_pool(limits=Limits(stall_s=0.05))) as pool, asyncio.timeout(20):
        while (await echo(pool, do="tell"))["tidied"] == 0:
            pass


async def test_cancelling_the_task_that_reads_a_stream_closes_it() -> None:
    async with running(echo_pool()) as pool:
        begun = asyncio.Event()

        async def read_for_ever() -> None:
            async with pool.open({"do": "endless"}) as stream:
                stream.end()
                while await stream.get() is not None:
                    begun.set()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(read_for_ever())
            await begun.wait()
            task.cancel()

        assert (await echo(pool))["closed"] == 1


async def test_a_stream_whose_replies_nobody_reads_fails_alone() -> None:
    async with running(echo_pool()) as pool, pool.open({"do": "flood"}) as stream:
        stream.end()
        assert (await echo(pool))["heard_bytes"] == 5

        with pytest.raises(EngineError, match="16777216 bytes of unread replies"):
            await stream.get()


@pytest.mark.parametrize(("do", "message"), [("refuse", "the wall does not answer"), ("raise", "the wall has a crack")])
async def test_a_request_that_fails_costs_itself_only(do: str, message: str) -> None:
    async with running(echo_pool()) as pool, pool.open({}) as other:
        with pytest.raises(EngineError, match=message):
            await echo(pool, do=do)

        assert (await finish(other))["heard_bytes"] == 0


async def test_a_request_waits_for_a_worker_with_room() -> None:
    async with running(echo_pool(streams_max=1)) as pool:
        async with asyncio.TaskGroup() as tasks, pool.open({}) as stream:
            waiting = tasks.create_task(echo(pool))
            await finish(stream)
            assert not waiting.done()

        assert waiting.result()["heard_bytes"] == 5


async def test_a_request_does_not_wait_for_ever_for_room() -> None:
    async with running(echo_pool(streams_max=1, limits=Limits(open_s=0.01))) as pool, pool.open({}):
        with pytest.raises(EngineError, match=r"no worker had room within 0\.01 s"):
            await echo(pool)


async def test_close_ends_the_processes_and_what_comes_after_is_refused() -> None:
    async with running(echo_pool(count=2)) as pool:
        process_ids = pool.process_ids

    await pool.close()

    assert len(process_ids) == 2
    for process_id in process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)
    assert pool.state == "closed"
    with pytest.raises(EngineError, match="closed"):
        await echo(pool)


async def test_cancelling_run_ends_the_processes() -> None:
    pool = echo_pool()
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(pool.run())
        await pool.load()
        process_id = pool.process_ids[0]
        run.cancel()

    await pool.close()

    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


async def test_a_pool_that_never_ran_can_be_closed() -> None:
    pool = echo_pool()

    await pool.close()

    assert pool.state == "closed"


def test_a_worker_ends_with_its_parent_and_leaves_interrupts_to_it() -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen([sys.executable, "-m", "media_server.engines.workers.child"], stdin=theirs.fileno()) as child,
    ):
        theirs.close()
        ours.sendall(pack(0, Kind.LOAD, {"factory": ECHO, "options": {}, "streams_max": 1, "wait_s": 1, "stuck_s": 1}))
        unread = bytearray(ours.recv(1000))
        child.send_signal(signal.SIGINT)
        ours.sendall(pack(7, Kind.OPEN) + pack(7, Kind.END))
        while not unread.count(b"heard_bytes"):
            unread += ours.recv(1000)
        ours.shutdown(socket.SHUT_WR)

        assert take_frames(unread)[0].kind is Kind.READY
        assert child.wait(timeout=10) == 0


def test_uvloop_serves_as_well() -> None:
    async def serve() -> dict[str, Any]:
        async with running(echo_pool()) as pool:
            with pytest.raises(EngineError, match="the worker ended"):
                await echo(pool, do="die")
            return await echo(pool)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve())["heard_bytes"] == 5
