"""Those who run the server see how it is; those who call get the page."""

import aiohttp
import pytest

from media_server.caller.client import CallClient
from media_server.events import Settings
from signaling.house import VERSION
from signaling.operations import STATIC
from tests.servers import server
from tests.signaling.scripted_house import ScriptedEngines, front_door


async def test_a_ready_server_is_healthy() -> None:
    async with front_door() as (client, house):
        house.manager.admit(Settings())
        house.manager.admit(Settings())

        response = await client.get("/health")

        assert response.status == 200
        assert await response.json() == {
            "status": "ready",
            "engines": {"vad": "ready", "asr": "ready", "llm": "ready", "tts": "ready"},
            "calls": 2,
            "max_calls": 25,
            "version": VERSION,
        }


@pytest.mark.parametrize(("state", "status"), [("warming", "warming"), ("down: no model", "down")])
async def test_a_server_that_takes_no_calls_is_not_healthy(state: str, status: str) -> None:
    async with front_door(ScriptedEngines(state=state)) as (client, _):
        response = await client.get("/health")

        assert response.status == 503
        assert response.headers["Retry-After"] == "5"
        body = await response.json()
        assert (body["status"], body["engines"]["asr"]) == (status, state)


async def test_a_server_that_stops_says_so() -> None:
    async with front_door() as (client, house):
        house.stopping.set()

        response = await client.get("/health")

        assert response.status == 503
        assert (await response.json())["status"] == "stopping"


async def test_the_figures_are_shown_to_prometheus() -> None:
    async with front_door() as (client, house):
        house.metrics.count("calls_total", 3)

        response = await client.get("/metrics")

        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "\nparley_calls_total 3\n" in await response.text()


@pytest.mark.e2e
async def test_what_happened_to_the_packets_of_calls_is_shown_to_prometheus() -> None:
    async with server() as url:
        async with CallClient(url) as call:
            call.say_in_writing("a large latte")
            await call.wait_for(lambda event: event["type"] == "response.done", 10)
        async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()

    figures = dict(line.split() for line in lines if not line.startswith("#"))
    assert float(figures["parley_packets_received_total"]) > 0
    assert float(figures["parley_packets_sent_total"]) > 0


async def test_the_page_may_use_the_microphone_and_only_its_own_files() -> None:
    async with front_door() as (client, _):
        response = await client.get("/")

        assert response.status == 200
        assert response.content_type == "text/html"
        assert "microphone=(self)" in response.headers["Permissions-Policy"]
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_every_file_of_the_page_is_asked_again_and_not_sent_again() -> None:
    async with front_door() as (client, _):
        for file in sorted(STATIC.iterdir()):
            first = await client.get(f"/static/{file.name}")
            again = await client.get(f"/static/{file.name}", headers={"If-None-Match": first.headers["ETag"]})

            assert (first.status, again.status) == (200, 304)
            assert first.headers["Cache-Control"] == "no-cache"


async def test_modules_have_the_type_that_browsers_insist_on() -> None:
    async with front_door() as (client, _):
        assert (await client.get("/static/parley.js")).content_type == "text/javascript"


def test_the_page_holds_no_inline_script_or_style() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")

    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page
    assert "onclick=" not in page
