"""Errors of every origin have one shape, and pages of other origins may call."""

import pytest

from signaling import realtime
from tests.signaling.scripted_house import front_door
from tests.signaling.test_realtime import error_of


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/static/nothing.js", "/static/../pyproject.toml"])
async def test_what_is_not_there_is_told_in_the_one_shape(path: str) -> None:
    async with front_door() as (client, _):
        response = await client.get(path)

        assert response.status == 404
        assert (await error_of(response))["code"] == "not_found"


async def test_a_method_that_is_not_allowed_is_told_which_are() -> None:
    async with front_door() as (client, _):
        response = await client.get(realtime.CALLS)

        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        error = await error_of(response)
        assert (error["code"], error["message"]) == ("method_not_allowed", "GET is not allowed here, wanted POST")


async def test_a_preflight_allows_what_the_sdk_sends() -> None:
    async with front_door() as (client, _):
        response = await client.options(realtime.CALLS, headers={"Access-Control-Request-Method": "POST"})

        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
        assert set(allowed) >= {"Authorization", "Content-Type", "X-OpenAI-Agents-SDK"}


async def test_an_error_can_be_read_by_a_page_of_another_origin() -> None:
    async with front_door() as (client, _):
        response = await client.post(realtime.CALLS, data=b"", headers={"Content-Type": "application/sdp"})

        assert response.status == 400
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "Location" in response.headers["Access-Control-Expose-Headers"]


async def test_the_page_and_its_figures_belong_to_one_origin() -> None:
    async with front_door() as (client, _):
        for path in ("/", "/health", "/metrics"):
            assert "Access-Control-Allow-Origin" not in (await client.get(path)).headers


async def test_no_answer_says_what_it_was_made_with() -> None:
    async with front_door() as (client, _):
        for path in ("/", "/nothing", "/health"):
            assert (await client.get(path)).headers["Server"] == "parley"
