"""What a media process knows of the others, and what it passes on."""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from media_server.metrics import Metrics
from signaling.middleware import answer_errors
from signaling.neighbours import NEIGHBOURS, Neighbours, pass_on, sum_metrics
from signaling.realtime import CALLS


async def answer(request: web.Request) -> web.Response:
    """Say who answers, and what arrived."""
    body = (await request.read()).decode()
    text = f"{request.app[NEIGHBOURS].index} {request.method} {request.path_qs} {body}".strip()
    return web.Response(text=text, headers={"Location": "/there", "Asked-From": str(request.remote)})


async def metrics(request: web.Request) -> web.Response:
    number = request.app[NEIGHBOURS].index + 1
    return web.Response(text=f"# TYPE a counter\na {number}\n# TYPE b gauge\nb {number}\n")


async def health(request: web.Request) -> web.Response:
    house = request.app[NEIGHBOURS]
    ready = house.index in house.board.ready
    return web.Response(text=f"{house.index} {'ready' if ready else 'warming'}", status=200 if ready else 503)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Street:
    """Some processes in one, each on its Unix socket; requests come to the first unless another is said."""

    def __init__(
        self,
        folder: Path,
        n: int = 2,
        *,
        answers: Handler = answer,
        body_limit_s: float = 10.0,
        ask_limit_s: float = 5.0,
    ) -> None:
        self._folder = folder
        self._answers = answers
        self._limits = {"body_limit_s": body_limit_s, "ask_limit_s": ask_limit_s}
        self.houses = [Neighbours(folder, index, n, **self._limits) for index in range(n)]
        self.clients: list[TestClient[web.Request, web.Application]] = []
        self._runners = [web.AppRunner(self._build(house)) for house in self.houses]

    @property
    def client(self) -> TestClient[web.Request, web.Application]:
        """Return who asks the first process."""
        return self.clients[0]

    async def __aenter__(self) -> "Street":
        for house, runner in zip(self.houses, self._runners, strict=True):
            await self._move_in(house, runner)
            self.clients.append(TestClient(TestServer(self._build(house))))
            await self.clients[-1].start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()
        for house, runner in zip(self.houses, self._runners, strict=True):
            await house.close()
            await runner.cleanup()

    def _build(self, neighbours: Neighbours) -> web.Application:
        app = web.Application(middlewares=[answer_errors, pass_on])
        app[NEIGHBOURS] = neighbours
        app.router.add_get("/metrics", metrics)
        app.router.add_get("/health", health)
        app.router.add_route("*", "/{rest:.*}", self._answers)
        return app

    async def _move_in(self, house: Neighbours, runner: web.AppRunner) -> None:
        await runner.setup()
        await web.UnixSite(runner, house.socket).start()
        house.note_ready(True)

    async def text(self, method: str, path: str, body: str = "") -> str:
        """Return what comes of a request at the first process."""
        async with self.client.request(method, path, data=body) as response:
            return await response.text()

    async def kill(self, index: int) -> None:
        """Let a process be gone without a word."""
        await self._runners[index].cleanup()

    @asynccontextmanager
    async def hanging(self, index: int) -> AsyncGenerator[None, None]:
        """Let a process take connections in, and answer none, while the block lasts."""
        writers: list[asyncio.StreamWriter] = []
        await self.kill(index)
        server = await asyncio.start_unix_server(lambda _, writer: writers.append(writer), self.houses[index].socket)
        async with server:
            yield
            for writer in writers:
                writer.close()

    async def replace(self, index: int) -> None:
        """Let another process take the place of one that was killed, as the supervisor does."""
        await self.houses[index].close()
        self.houses[index].board.clear(index)
        self.houses[index] = Neighbours(self._folder, index, len(self.houses), **self._limits)
        self._runners[index] = web.AppRunner(self._build(self.houses[index]))
        await self._move_in(self.houses[index], self._runners[index])


def test_together_the_processes_take_no_more_calls_than_the_limit(tmp_path: Path) -> None:
    one, other = Neighbours(tmp_path, 0, 2), Neighbours(tmp_path, 1, 2)

    taken = [one.take_place(1, limit=3), other.take_place(1, limit=3), one.take_place(2, limit=3)]
    refused = [one.take_place(3, limit=3), other.take_place(2, limit=3)]
    one.note_calls(1)

    assert taken == [True, True, True]
    assert refused == [False, False]
    assert other.take_place(2, limit=3)


async def test_a_new_call_goes_to_the_emptiest_process_that_is_ready(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        street.houses[0].note_calls(2)
        street.houses[1].note_calls(1)
        to_emptier = await street.text("POST", CALLS, "offer")
        street.houses[1].note_ready(False)
        to_ready = await street.text("POST", CALLS, "offer")

    assert to_emptier == f"1 POST {CALLS} offer"
    assert to_ready == f"0 POST {CALLS} offer"


@pytest.mark.parametrize(
    ("path", "index"),
    [
        (f"{CALLS}/rtc_01abc/hangup?why=x", 1),
        (f"{CALLS}/rtc_01abc/resume", 1),
        ("/v1/realtime?call_id=rtc_01abc", 1),
        ("/v1/realtime?model=x", 0),
        (f"{CALLS}/rtc_00abc", 0),
        (f"{CALLS}/rtc_ffabc", 0),
        (f"{CALLS}/nonsense", 0),
        (CALLS, 0),
        ("/there", 0),
    ],
)
async def test_a_call_that_is_there_is_asked_of_its_own_process(tmp_path: Path, path: str, index: int) -> None:
    async with Street(tmp_path) as street:
        street.houses[0].note_calls(9)

        assert await street.text("DELETE", path) == f"{index} DELETE {path}"


async def test_what_is_passed_on_comes_back_with_status_and_headers(tmp_path: Path) -> None:
    async with Street(tmp_path) as street, street.client.delete(f"{CALLS}/rtc_01abc") as response:
        assert response.status == 200
        assert response.headers["Location"] == "/there"


async def test_a_websocket_of_a_call_is_joined_with_its_own_process(tmp_path: Path) -> None:
    async def open_websocket(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_str(f"{request.app[NEIGHBOURS].index} for {request.remote}")
        await websocket.send_str(f"heard {await websocket.receive_str()}")
        return websocket

    async with (
        Street(tmp_path, answers=open_websocket) as street,
        street.client.ws_connect("/v1/realtime?call_id=rtc_01abc") as websocket,
    ):
        await websocket.send_str("hello")
        said = [await websocket.receive_str(), await websocket.receive_str()]

    assert said == ["1 for 127.0.0.1", "heard hello"]


@pytest.mark.parametrize("arrive_at", [[0], [0, 1, 2, 3], [1, 2]])
async def test_new_calls_that_come_at_once_are_spread_evenly(tmp_path: Path, arrive_at: list[int]) -> None:
    all_there = asyncio.Barrier(40)

    async def answer_all_at_once(request: web.Request) -> web.Response:
        await all_there.wait()
        return await answer(request)

    async def offer(street: Street, n: int) -> str:
        async with street.clients[arrive_at[n % len(arrive_at)]].post(CALLS) as response:
            return await response.text()

    async with Street(tmp_path, 4, answers=answer_all_at_once) as street:
        answers = await asyncio.gather(*(offer(street, n) for n in range(40)))
        board = street.houses[0].board
        left = [board.given(index) for index in range(4)]

    assert Counter(answers) == {f"{index} POST {CALLS}": 10 for index in range(4)}
    assert left == [0, 0, 0, 0]


def test_a_call_that_was_given_to_a_process_counts_there_until_it_is_answered(tmp_path: Path) -> None:
    houses = [Neighbours(tmp_path, index, 3) for index in range(3)]
    for house, calls in zip(houses, (1, 0, 2), strict=True):
        house.note_ready(True)
        house.note_calls(calls)

    with houses[2].given() as first, houses[2].given() as second, houses[2].given() as third:
        counted = [houses[0].board.given(index) for index in range(3)]
    with houses[2].given() as later:
        pass

    assert (first, second, third) == (1, 0, 1)
    assert counted == [1, 2, 0]
    assert later == 1


def test_of_processes_with_as_many_calls_each_keeps_what_comes_to_it(tmp_path: Path) -> None:
    houses = [Neighbours(tmp_path, index, 3) for index in range(3)]
    for house in houses[:2]:
        house.note_ready(True)

    with houses[1].given() as of_ready, houses[2].given() as of_warming:
        assert (of_ready, of_warming) == (1, 0)


def test_where_no_process_is_ready_a_new_call_stays_where_it_came(tmp_path: Path) -> None:
    with Neighbours(tmp_path, 1, 2).given() as index:
        assert index == 1


async def test_the_figures_of_all_processes_are_summed(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        together = await street.text("GET", "/metrics")

    assert together == "# TYPE a counter\na 3\n# TYPE b gauge\nb 3\n"


async def test_what_a_process_had_counted_goes_on_with_the_next_one_at_its_place(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        await street.text("GET", "/metrics")
        await street.kill(1)
        dead = await street.text("GET", "/metrics")
        await street.replace(1)
        replaced = await street.text("GET", "/metrics")
        of_the_new_one = await (await street.clients[0].get("/metrics")).text()

    assert dead == "# TYPE a counter\na 3\n# TYPE b gauge\nb 1\n"
    assert replaced == of_the_new_one == "# TYPE a counter\na 5\n# TYPE b gauge\nb 3\n"


async def test_a_process_that_hangs_does_not_keep_the_figures_of_the_others(tmp_path: Path) -> None:
    async with Street(tmp_path, ask_limit_s=0.01) as street, street.hanging(1):
        street.houses[1].board.write_counted(1, [7.0])

        async with asyncio.timeout(10):  # less than what a request about a call may take
            figures = await street.text("GET", "/metrics")

    assert figures == "# TYPE a counter\na 8\n# TYPE b gauge\nb 1\n"


def test_the_board_has_room_for_the_counters_of_metrics(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.count("calls_total", 3)
    metrics.gauge("calls_active", 2)
    metrics.observe("loop_lag_ms", 1.5)

    shown = Neighbours(tmp_path, 1, 2).count_on(metrics.render())
    shown_by_the_next = Neighbours(tmp_path, 1, 2).count_on(Metrics().render())

    assert shown == metrics.render()
    assert shown_by_the_next == metrics.render().replace("parley_calls_active 2", "parley_calls_active 0")


async def test_a_server_is_healthy_if_any_of_its_processes_is(tmp_path: Path) -> None:
    async with Street(tmp_path, 3) as street:
        street.houses[0].note_ready(False)
        street.houses[1].note_ready(False)
        async with street.client.get("/health") as response:
            one_ready = response.status, await response.text()
        street.houses[2].note_ready(False)
        async with street.client.get("/health") as response:
            none_ready = response.status, await response.text()

    assert one_ready == (200, "2 ready")
    assert none_ready == (503, "0 warming")


async def test_a_process_that_hangs_makes_no_server_healthy(tmp_path: Path) -> None:
    async with Street(tmp_path, ask_limit_s=0.01) as street, street.hanging(1):
        street.houses[0].note_ready(False)

        async with asyncio.timeout(10), street.client.get("/health") as response:
            assert response.status == 503


def test_sums_are_by_name_and_label() -> None:
    texts = ['a_bucket{le="1"} 1\na_sum 0.5\n', 'a_bucket{le="1"} 2\na_sum 1.25\n']

    assert sum_metrics(texts) == 'a_bucket{le="1"} 3\na_sum 1.75\n'


async def test_calls_of_a_process_that_died_are_not_found_and_new_ones_are_told_to_come_back(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        street.houses[0].note_calls(1)
        await street.kill(1)
        async with street.client.post(CALLS) as new, street.client.post(f"{CALLS}/rtc_01abc/resume") as known:
            statuses = new.status, known.status
            message = (await known.json())["error"]["message"]

    assert statuses == (503, 404)
    assert message == "there is no call 'rtc_01abc'"


async def test_a_body_that_does_not_come_is_not_waited_for_to_pass_it_on(tmp_path: Path) -> None:
    never = asyncio.Event()

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"v=0"
        await never.wait()

    async with Street(tmp_path, body_limit_s=0.01) as street:
        street.houses[0].note_calls(1)
        async with street.client.post(CALLS, data=body()) as response:
            error = (await response.json())["error"]
            never.set()

    assert (response.status, error["code"]) == (400, "body_too_slow")


async def test_a_compressed_body_is_passed_on_as_what_it_says(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        headers = {"content-encoding": "gzip"}
        path = f"{CALLS}/rtc_01abc/resume"
        async with street.client.post(path, data=gzip.compress(b"v=0"), headers=headers) as response:
            assert await response.text() == f"1 POST {path} v=0"


async def test_a_process_knows_from_where_a_request_came_that_is_passed_on(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        forged = {"Parley-Remote": "203.0.113.7"}
        async with street.client.delete(f"{CALLS}/rtc_01abc", headers=forged) as response:
            passed_on = response.headers["Asked-From"]
        async with street.client.delete(f"{CALLS}/rtc_00abc", headers=forged) as response:
            own = response.headers["Asked-From"]

    assert (passed_on, own) == ("127.0.0.1", "127.0.0.1")
