"""What a media process knows of the others, and what it passes on."""

import asyncio
import fcntl
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from signaling.middleware import answer_errors
from signaling.neighbours import NEIGHBOURS, Board, Neighbours, pass_on, sum_metrics
from signaling.realtime import CALLS


async def answer(request: web.Request) -> web.Response:
    """Say who answers, and what arrived."""
    body = (await request.read()).decode()
    text = f"{request.app[NEIGHBOURS].index} {request.method} {request.path_qs} {body}".strip()
    return web.Response(text=text, headers={"Location": "/there", "Asked-From": str(request.remote)})


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text=f"# HELP a A\na {request.app[NEIGHBOURS].index + 1}\n")


def build(neighbours: Neighbours) -> web.Application:
    app = web.Application(middlewares=[answer_errors, pass_on])
    app[NEIGHBOURS] = neighbours
    app.router.add_get("/metrics", metrics)
    app.router.add_route("*", "/{rest:.*}", answer)
    return app


class Street:
    """Two processes in one, each on its Unix socket; requests come to the first."""

    def __init__(self, folder: Path, body_limit_s: float = 10.0) -> None:
        self.houses = [Neighbours(folder, index, 2, body_limit_s=body_limit_s) for index in range(2)]
        self._runners = [web.AppRunner(build(house)) for house in self.houses]

    async def __aenter__(self) -> "Street":
        for house, runner in zip(self.houses, self._runners, strict=True):
            await runner.setup()
            await web.UnixSite(runner, house.socket).start()
            house.note_ready(True)
        self.client = TestClient(TestServer(build(self.houses[0])))
        await self.client.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        for house, runner in zip(self.houses, self._runners, strict=True):
            await house.close()
            await runner.cleanup()

    async def text(self, method: str, path: str, body: str = "") -> str:
        """Return what comes of a request at the first process."""
        async with self.client.request(method, path, data=body) as response:
            return await response.text()

    async def kill(self, index: int) -> None:
        """Let a process be gone without a word."""
        await self._runners[index].cleanup()


def test_the_board_is_one_for_all(tmp_path: Path) -> None:
    one, other = Board(tmp_path / "board", 3), Board(tmp_path / "board", 3)
    one.write(0, calls=3, ready=True)
    one.write(1, calls=1, ready=True)
    one.write(2, calls=0, ready=False)

    assert other.calls == 4
    assert other.ready == [1, 0]


def test_the_board_knows_who_was_ever_ready(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    board.write(0, calls=0, ready=True)
    board.write(0, calls=0, ready=False)
    board.write(1, calls=0, ready=False)

    before = [board.was_ready(0), board.was_ready(1)]
    board.clear(0)

    assert before == [True, False]
    assert not board.was_ready(0)


def test_together_the_processes_take_no_more_calls_than_the_limit(tmp_path: Path) -> None:
    one, other = Neighbours(tmp_path, 0, 2), Neighbours(tmp_path, 1, 2)

    taken = [one.take_place(1, limit=3), other.take_place(1, limit=3), one.take_place(2, limit=3)]
    refused = [one.take_place(3, limit=3), other.take_place(2, limit=3)]
    one.note_calls(1)

    assert taken == [True, True, True]
    assert refused == [False, False]
    assert other.take_place(2, limit=3)


def test_who_takes_a_place_waits_while_another_counts(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    with ThreadPoolExecutor() as threads, (tmp_path / "board").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threads.submit(board.take_place, 0, calls=1, limit=1)
        board.write(1, calls=1, ready=True)
        fcntl.flock(file, fcntl.LOCK_UN)

        assert not waiting.result()


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
        (f"{CALLS}/rtc_00abc", 0),
        (f"{CALLS}/rtc_ffabc", 0),
        (f"{CALLS}/nonsense", 0),
        ("/health", 0),
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


async def test_the_figures_of_all_processes_are_summed(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        together = await street.text("GET", "/metrics")
        await street.kill(1)
        alone = await street.text("GET", "/metrics")

    assert together == "# HELP a A\na 3\n"
    assert alone == "# HELP a A\na 1\n"


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


async def test_a_process_knows_from_where_a_request_came_that_is_passed_on(tmp_path: Path) -> None:
    async with Street(tmp_path) as street:
        forged = {"Parley-Remote": "203.0.113.7"}
        async with street.client.delete(f"{CALLS}/rtc_01abc", headers=forged) as response:
            passed_on = response.headers["Asked-From"]
        async with street.client.delete(f"{CALLS}/rtc_00abc", headers=forged) as response:
            own = response.headers["Asked-From"]

    assert (passed_on, own) == ("127.0.0.1", "127.0.0.1")
