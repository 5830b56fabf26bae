"""The process: it listens at once, takes calls once the engines are ready, and ends cleanly."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from media_server.errors import AddressError, EngineMissingError
from media_server.metrics import Metrics
from signaling.app import GC_THRESHOLDS, serve, watch_lag
from signaling.neighbours import Neighbours
from tests.signaling.scripted_house import ScriptedEngines, make_config
from tests.virtual_time import run_virtual


class Said:
    """What the operator was told so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def say(self, line: str) -> None:
        """Take a line."""
        self.lines.append(line)
        self._news.set()

    async def url(self, begin: str) -> str:
        """Return the URL in the first line that begins so, waiting for it."""
        async with asyncio.timeout(10):
            while True:
                for line in self.lines:
                    if line.startswith(begin):
                        return "http://" + line.partition("http://")[2].partition("/")[0]
                self._news.clear()
                await self._news.wait()


@pytest.fixture(autouse=True)
def _own_garbage() -> Generator[None, None, None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@asynccontextmanager
async def process(engines: ScriptedEngines) -> AsyncGenerator[tuple[Said, asyncio.Task[None]], None]:
    """Serve until the block ends; then end by SIGTERM, as an operator would."""
    said = Said()
    serving = asyncio.create_task(serve(make_config(), engines, said.say))
    yield said, serving
    if not serving.done():
        os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await serving


async def test_it_listens_while_the_engines_are_warming_up() -> None:
    engines = ScriptedEngines(state="warming")
    async with process(engines) as (said, _), aiohttp.ClientSession() as http:
        url = await said.url("listening on")
        async with http.get(f"{url}/health") as cold:
            assert cold.status == 503
            assert (await cold.json())["status"] == "warming"
        engines.loading.set()
        await said.url("ready for calls")

        async with http.get(f"{url}/health") as warm:
            assert warm.status == 200


async def test_the_operator_is_told_which_engines_serve_and_where() -> None:
    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    async with process(engines) as (said, _):
        await said.url("ready for calls")

    assert said.lines[0] == "asr: scripted - a test"
    assert said.lines[1].startswith("listening on http://127.0.0.1:")
    assert said.lines[2].startswith("ready for calls after ")
    assert said.lines[3] == "stopping; calls to hang up: 0; a second signal ends them at once"


async def test_what_was_there_at_the_start_is_not_collected_again() -> None:
    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    async with process(engines) as (said, _):
        await said.url("ready for calls")

        assert gc.get_freeze_count() > 1000
        assert gc.get_threshold() == GC_THRESHOLDS


async def test_a_signal_during_the_warm_up_ends_it() -> None:
    engines = ScriptedEngines(state="warming")
    async with process(engines) as (said, _):
        await said.url("listening on")

    assert engines.closed
    assert said.lines[-1] == "stopping; calls to hang up: 0; a second signal ends them at once"


async def test_an_engine_that_cannot_be_had_ends_the_process() -> None:
    engines = ScriptedEngines(state="warming", failure=EngineMissingError("asr: install faster-whisper"))
    engines.loading.set()

    with pytest.raises(EngineMissingError, match="install faster-whisper"):
        async with asyncio.timeout(10):
            await serve(make_config(), engines, Said().say)

    assert engines.closed


async def test_a_taken_port_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(AddressError, match=rf"^cannot listen on 127.0.0.1:{port}: address already in use; wanted"):
            await serve(make_config({"server.port": port}), ScriptedEngines(), Said().say)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_both_signals_end_it(number: signal.Signals) -> None:
    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    async with process(engines) as (said, serving):
        await said.url("ready for calls")

        os.kill(os.getpid(), number)
        async with asyncio.timeout(10):
            await serving


@pytest.mark.parametrize(("alone", "then"), [(True, signal.SIG_DFL), (False, signal.SIG_IGN)])
async def test_a_second_signal_ends_a_process_at_once_but_not_one_that_has_a_supervisor(
    alone: bool, then: signal.Handlers, short_folder: Path
) -> None:
    at_stop: list[Any] = []

    def say(line: str) -> None:
        if line.startswith("stopping"):
            at_stop.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
        elif line.startswith("ready for calls"):
            os.kill(os.getpid(), signal.SIGTERM)

    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    neighbours = None if alone else Neighbours(short_folder, 0, 1)
    async with asyncio.timeout(10):
        await serve(make_config(), engines, say, neighbours)

    assert at_stop == [then, then]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_the_calls_end_before_the_engines() -> None:
    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    async with process(engines) as (said, _):
        await said.url("ready for calls")

    assert "engines" in engines.tasks_at_the_end
    assert "calls" not in engines.tasks_at_the_end


@pytest.mark.e2e
async def test_a_signal_hangs_up_the_calls() -> None:
    engines = ScriptedEngines(state="warming")
    engines.loading.set()
    caller = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    caller.addTransceiver("audio")
    channel = caller.createDataChannel("oai-events")
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    closed = asyncio.Event()
    channel.once("message", first.set_result)
    channel.on("close", closed.set)
    await caller.setLocalDescription(await caller.createOffer())
    async with process(engines) as (said, serving), aiohttp.ClientSession() as http:
        url = await said.url("ready for calls")
        headers = {"Content-Type": "application/sdp"}
        async with http.post(f"{url}/v1/realtime/calls", data=caller.localDescription.sdp, headers=headers) as answer:
            await caller.setRemoteDescription(RTCSessionDescription(await answer.text(), "answer"))
        async with asyncio.timeout(10):
            assert json.loads(await first)["type"] == "session.created"

        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            await serving
            await closed.wait()

    assert said.lines[-1] == "stopping; calls to hang up: 1; a second signal ends them at once"
    assert not [name for name in engines.tasks_at_the_end if name.startswith("call")]
    await caller.close()


def test_the_lag_of_the_loop_is_measured_ten_times_a_second() -> None:
    metrics = Metrics()

    async def watch_for_a_second() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.05):
                await watch_lag(metrics)

    run_virtual(watch_for_a_second())

    lag = metrics.snapshot()["loop_lag_ms"]
    assert lag["count"] == 10
    assert lag["max"] < 0.1
