"""Model workers that several processes share: here one pool has them, and two others join it."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from media_server.engines.workers.counts import StreamCounts
from media_server.engines.workers.frames import Kind, pack
from media_server.engines.workers.pool import WorkerPool
from media_server.engines.workers.process import RESTARTS_MAX, Limits
from media_server.errors import EngineDownError, EngineError
from tests.engines.workers.test_pool import NO_PAUSE, echo, echo_pool, finish, running

pytestmark = pytest.mark.models  # it starts processes, as those that load models do

Pools = tuple[WorkerPool, WorkerPool, WorkerPool]


@asynccontextmanager
async def shared(
    folder: Path, options: dict[str, Any] | None = None, *, limits: Limits = NO_PAUSE, **kinds: int
) -> AsyncGenerator[Pools, None]:
    """Run the pool that has the workers, and two that joined it."""
    has, one, other = (echo_pool(options, limits=limits, **kinds) for _ in range(3))
    has.share(folder)
    one.join(folder)
    other.join(folder)
    async with AsyncExitStack() as stack:
        for pool in (has, one, other):
            await stack.enter_async_context(running(pool))
        yield has, one, other


async def reached(pool: WorkerPool, state: str) -> None:
    """Wait until a pool is in that state."""
    async with asyncio.timeout(20):
        while pool.state != state:  # noqa: ASYNC110 - nobody but `open` and `load` is told
            await asyncio.sleep(0)


def leave(pool: WorkerPool) -> None:
    """Let a pool lose its workers without a word, as by the death of its process."""
    for worker in pool._workers:
        if worker.link is not None:
            worker.link.abort()


async def test_pools_that_join_use_the_workers_of_another_and_have_none(tmp_path: Path) -> None:
    async with shared(tmp_path) as (has, one, other):
        notes = await asyncio.gather(echo(one, b"hello"), echo(other, b"hi"), echo(has, b"h"))

        assert [note["heard_bytes"] for note in notes] == [5, 2, 1]
        assert (len(has.process_ids), one.process_ids, other.process_ids) == (1, [], [])
        assert one.about == other.about == {"walls": 4}


async def test_a_pool_may_join_before_the_workers_are_there(tmp_path: Path) -> None:
    has, one = echo_pool(), echo_pool()
    has.share(tmp_path)
    one.join(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.run())
        loading = tasks.create_task(one.load())
        tasks.create_task(has.run())
        await loading

        assert (await echo(one))["heard_bytes"] == 5
        await one.close()
        await has.close()


async def test_the_limit_of_streams_holds_over_all_pools(tmp_path: Path) -> None:
    async with shared(tmp_path, streams_max=1) as (_, one, other), asyncio.TaskGroup() as tasks:
        async with one.open({}) as stream:
            await stream.send(b"begun")
            assert await stream.get()
            waiting = tasks.create_task(echo(other))
            await finish(stream)
            assert not waiting.done()

        assert await waiting == {"heard_bytes": 5, "closed": 1}


async def test_a_stream_waits_for_room_no_longer_than_the_limit(tmp_path: Path) -> None:
    limits = Limits(backoff_s=0.001, open_s=0.01)
    async with shared(tmp_path, limits=limits, streams_max=1) as (_, one, other), one.open({}) as stream:
        await stream.send(b"begun")
        assert await stream.get()

        with pytest.raises(EngineError, match=r"no worker had room within 0\.01 s"):
            await echo(other)


async def test_a_stream_that_is_cancelled_while_it_waits_takes_no_place(tmp_path: Path) -> None:
    async with shared(tmp_path, streams_max=1) as (_, one, other):
        async with one.open({}) as stream:
            await stream.send(b"begun")
            assert await stream.get()
            async with other.open({}):
                pass
            assert (await finish(stream))["closed"] == 0

        assert (await echo(other))["closed"] == 1


async def test_a_stream_goes_to_the_worker_with_the_fewest_of_all_pools(tmp_path: Path) -> None:
    async with shared(tmp_path, count=2) as (_, one, other), one.open({}) as first:
        await first.send(b"begun")
        assert await first.get()

        with pytest.raises(EngineError, match="the worker ended"):
            await echo(other, do="die")

        assert (await finish(first))["heard_bytes"] == 5


async def test_a_worker_that_dies_costs_its_streams_in_all_pools_and_the_next_one_serves_them(tmp_path: Path) -> None:
    async with shared(tmp_path) as (has, one, other), one.open({}) as first, other.open({}) as second:
        (before,) = has.process_ids
        os.kill(before, signal.SIGKILL)

        for stream in (first, second):
            with pytest.raises(EngineError, match="the worker ended in the middle of this request"):
                await stream.get()

        assert (await echo(one))["heard_bytes"] == (await echo(other))["heard_bytes"] == 5
        assert has.process_ids != [before]


async def test_a_worker_that_hangs_on_the_stream_of_one_pool_is_replaced_for_all(tmp_path: Path) -> None:
    async with shared(tmp_path, limits=Limits(stall_s=0.2, backoff_s=0.001)) as (_, one, other):
        with pytest.raises(EngineError, match="the worker ended"):
            await echo(one, do="hang")

        await reached(other, "starting")
        assert (await echo(other))["heard_bytes"] == 5


@pytest.mark.parametrize("do", ["", "endless"])
async def test_a_process_that_goes_frees_its_streams(tmp_path: Path, do: str) -> None:
    async with shared(tmp_path, streams_max=1) as (_, one, other), one.open({"do": do}) as stream:
        await stream.send(b"begun")
        stream.end()
        assert await stream.get()
        leave(one)

        assert (await echo(other))["closed"] == 1


async def test_who_reads_nothing_is_left_and_the_others_are_served(tmp_path: Path) -> None:
    async with shared(tmp_path, limits=Limits(stuck_s=0.01)) as (_, one, _):
        with socket.socket(socket.AF_UNIX) as stuck:
            stuck.connect(str(tmp_path / "echo-0.sock"))
            stuck.sendall(pack(1, Kind.OPEN, {"do": "flood"}) + pack(1, Kind.END))

            assert (await echo(one))["closed"] == 1


async def test_all_pools_are_told_that_the_workers_are_down_and_why(tmp_path: Path) -> None:
    async with shared(tmp_path) as (_, one, other):
        for _ in range(1 + RESTARTS_MAX):
            with pytest.raises(EngineError, match="the worker ended"):
                await echo(one, do="die")

        for pool in (one, other):
            await reached(pool, "down")
            with pytest.raises(EngineDownError, match="died 6 times in a row, last with status 3"):
                await echo(pool)


async def test_a_stream_of_any_pool_that_was_finished_ends_the_row_of_deaths(tmp_path: Path) -> None:
    async with shared(tmp_path) as (_, one, other):
        for deaths in (RESTARTS_MAX, 1):
            for _ in range(deaths):
                with pytest.raises(EngineError, match="the worker ended"):
                    await echo(one, do="die")
            await reached(other, "starting")
            await echo(other)

        assert one.state == "up"


async def test_workers_that_are_up_again_serve_who_was_told_that_they_are_down(tmp_path: Path) -> None:
    die = tmp_path / "die"
    limits = Limits(backoff_s=0.001, retry_s=0.001)
    options = {"load": "die", "while": str(die)}
    async with shared(tmp_path, options, limits=limits) as (has, one, _):
        die.touch()
        os.kill(has.process_ids[0], signal.SIGKILL)
        await reached(one, "down")

        die.unlink()
        await reached(one, "up")

        assert (await echo(one))["heard_bytes"] == 5


async def test_a_pool_that_joined_workers_that_cannot_load_waits_and_says_why(tmp_path: Path) -> None:
    has, one = echo_pool({"load": "missing"}), echo_pool()
    has.share(tmp_path)
    one.join(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(has.run())
        tasks.create_task(one.run())
        loading = tasks.create_task(one.load())
        await reached(one, "down")

        assert one.why_down == "echo: install a wall"
        assert not loading.done()
        loading.cancel()
        await one.close()
        await has.close()


async def test_who_joins_while_one_of_the_workers_is_down_does_not_wait_for_it(tmp_path: Path) -> None:
    die = tmp_path / "die"
    options = {"load": "die", "while": str(die)}
    async with shared(tmp_path, options, count=2) as (has, one, _):
        die.touch()
        os.kill(has.process_ids[0], signal.SIGKILL)
        async with asyncio.timeout(20):
            while not any(worker.down for worker in one._workers):  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0)
        late = echo_pool(options, count=2)
        late.join(tmp_path)

        async with asyncio.timeout(20), running(late):
            assert late.state == "degraded"
            assert (await echo(late))["heard_bytes"] == 5


async def test_whoever_sends_what_is_no_frame_is_left_and_nobody_else(tmp_path: Path) -> None:
    async with shared(tmp_path) as (has, one, _), one.open({}) as stream:
        await stream.send(b"begun")
        assert await stream.get()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "echo-0.sock"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()

        assert (await finish(stream))["closed"] == 0
        assert len(has.process_ids) == 1


async def test_when_who_has_the_workers_ends_they_are_down_for_the_others(tmp_path: Path) -> None:
    async with shared(tmp_path) as (has, one, _):
        await has.close()

        with pytest.raises(EngineDownError, match="the workers' socket cannot be reached"):
            await echo(one)


async def test_the_streams_of_each_worker_are_counted_for_all(tmp_path: Path) -> None:
    async with shared(tmp_path) as (_, one, other), one.open({}) as first, other.open({}) as second:
        for stream in (first, second):
            await stream.send(b"begun")
            assert await stream.get()
        counts = StreamCounts(tmp_path / "echo.streams")
        both = counts.read(0)
        await finish(first)
        await finish(second)
        async with asyncio.timeout(10):
            while counts.read(0) > 0:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0)
        counts.close()

    assert both == 2


def test_uvloop_shares_as_well(tmp_path: Path) -> None:
    async def serve() -> dict[str, Any]:
        die = tmp_path / "die"
        options = {"load": "die", "while": str(die)}
        async with shared(tmp_path, options, limits=Limits(backoff_s=0.001, retry_s=0.001)) as (has, one, other):
            die.touch()
            os.kill(has.process_ids[0], signal.SIGKILL)
            await reached(one, "down")
            die.unlink()
            await reached(other, "up")
            return await echo(other)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve())["heard_bytes"] == 5
