"""The real client talks to an endpoint on loopback that speaks chat completions as the various servers do."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from media_server.conversation import FunctionCall, FunctionOutput, Role, SpokenMessage, Usage
from media_server.engines.llm_openai import OpenAiLlm, build_messages
from media_server.engines.protocols import Finished, Llm, LlmDelta, LlmRequest, TextDelta, Tool, ToolCallDelta
from media_server.errors import EngineError, EngineMissingError
from tests.engines.chat_endpoint import KEY, Endpoint, calls, chunk, end, serving_chat, text


def said(role: Role, written: str, heard: str | None = None) -> SpokenMessage:
    return SpokenMessage(id=f"item_{written}", role=role, modality="audio", written=written, heard=heard)


REQUEST = LlmRequest(items=(said("user", "Hi"),))


@pytest.fixture
async def endpoint() -> AsyncGenerator[Endpoint, None]:
    async with serving_chat() as endpoint:
        yield endpoint


@pytest.fixture
async def llm(endpoint: Endpoint) -> AsyncGenerator[Llm, None]:
    engine: Llm = OpenAiLlm(base_url=endpoint.url, model="tiny", api_key=KEY, retries=0)
    await engine.load()
    endpoint.asked.clear()
    endpoint.reached.clear()
    yield engine
    await engine.close()


async def collect(deltas: AsyncGenerator[LlmDelta, None]) -> list[LlmDelta]:
    async with aclosing(deltas):
        return [delta async for delta in deltas]


async def test_a_reply_streams_and_ends_with_usage_and_reason(endpoint: Endpoint, llm: Llm) -> None:
    usage = chunk(usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})
    endpoint.lines = [text("Hello"), text(" there."), end("stop"), usage, "[DONE]"]

    assert await collect(llm.reply(REQUEST)) == [
        TextDelta("Hello"),
        TextDelta(" there."),
        Usage(input_tokens=7, output_tokens=2),
        Finished("stop"),
    ]


async def test_the_request_carries_all_that_was_asked_for(endpoint: Endpoint, llm: Llm) -> None:
    tool = Tool("lamp", "Turns the lamp on or off.", {"type": "object"})
    request = LlmRequest(
        items=(said("user", "Light!"),),
        instructions="Be brief.",
        tools=(tool,),
        tool_choice="lamp",
        max_tokens=40,
        temperature=0.5,
    )

    await collect(llm.reply(request))

    assert endpoint.asked == [
        {
            "model": "tiny",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Light!"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "lamp",
                        "description": "Turns the lamp on or off.",
                        "parameters": {"type": "object"},
                    },
                }
            ],
            "tool_choice": {"type": "function", "function": {"name": "lamp"}},
            "max_tokens": 40,
            "temperature": 0.5,
        }
    ]
    assert endpoint.headers[-1]["Authorization"] == f"Bearer {KEY}"


async def test_without_a_key_none_is_sent_and_extra_fields_are(endpoint: Endpoint) -> None:
    llm = OpenAiLlm(base_url=endpoint.url, extra={"seed": 7})

    await llm.load()
    await llm.close()

    assert "Authorization" not in endpoint.headers[-1]
    assert endpoint.asked[-1]["seed"] == 7
    assert endpoint.asked[-1]["max_tokens"] == 1
    assert llm.why == f"tiny at {endpoint.url}"


async def test_tool_calls_come_in_pieces(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [
        calls({"index": 0, "id": "call_a", "type": "function", "function": {"name": "lamp", "arguments": ""}}),
        calls({"index": 0, "function": {"arguments": '{"on":'}}),
        calls({"index": 0, "function": {"arguments": " true}"}}),
        calls({"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}}),
        end("tool_calls"),
        "[DONE]",
    ]

    assert await collect(llm.reply(REQUEST)) == [
        ToolCallDelta(call_id="call_a", name="lamp", arguments=""),
        ToolCallDelta(call_id="call_a", name=None, arguments='{"on":'),
        ToolCallDelta(call_id="call_a", name=None, arguments=" true}"),
        ToolCallDelta(call_id="call_b", name="time", arguments="{}"),
        Finished("tool_calls"),
    ]


async def test_calls_that_all_have_index_0_and_end_with_stop_are_told_apart(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [
        calls(
            {"index": 0, "id": "call_a", "function": {"name": "lamp", "arguments": "{}"}},
            {"index": 0, "id": "call_b", "function": {"name": "time", "arguments": "{}"}},
        ),
        end("stop"),
    ]

    deltas = await collect(llm.reply(REQUEST))

    assert deltas[:2] == [
        ToolCallDelta(call_id="call_a", name="lamp", arguments="{}"),
        ToolCallDelta(call_id="call_b", name="time", arguments="{}"),
    ]
    assert deltas[2] == Finished("tool_calls")


async def test_a_call_without_an_id_gets_one(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [
        calls({"index": 0, "function": {"name": "lamp", "arguments": "{"}}),
        calls({"index": 0, "function": {"arguments": "}"}}),
        end("tool_calls"),
    ]

    first, second, _ = await collect(llm.reply(REQUEST))

    assert isinstance(first, ToolCallDelta)
    assert isinstance(second, ToolCallDelta)
    assert first.call_id.startswith("call_")
    assert (second.call_id, second.name) == (first.call_id, None)


async def test_closing_the_generator_closes_the_response(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines, endpoint.stalls = [text("Hello")], True

    async with aclosing(llm.reply(REQUEST)) as deltas:
        first = await anext(deltas)

    assert first == TextDelta("Hello")
    async with asyncio.timeout(5):
        await endpoint.gone.wait()


async def test_cancelling_the_consumer_closes_the_response(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines, endpoint.stalls = [], True
    consumer = asyncio.create_task(collect(llm.reply(REQUEST)))
    async with asyncio.timeout(5):
        await endpoint.reached.wait()

    consumer.cancel()

    async with asyncio.timeout(5):
        await asyncio.wait([consumer])
        await endpoint.gone.wait()
    assert consumer.cancelled()


async def test_a_server_that_rejects_stream_options_is_asked_again_without(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.refuses = {"stream_options": (400, "unknown field stream_options")}

    first = await collect(llm.reply(REQUEST))
    second = await collect(llm.reply(REQUEST))

    assert first == second == [TextDelta("Hello"), Finished("stop")]
    assert ["stream_options" in body for body in endpoint.asked] == [True, False, False]


async def test_a_request_that_is_refused_either_way_says_why(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.refuses = {"": (400, "context length exceeded")}

    with pytest.raises(EngineError, match=r"answered 400: .*context length exceeded"):
        await collect(llm.reply(REQUEST))


async def test_no_done_line_and_no_usage_is_fine(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [text("Hello"), end("length")]

    assert await collect(llm.reply(REQUEST)) == [TextDelta("Hello"), Finished("length")]


async def test_a_reply_that_is_torn_off_fails(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [text("Hello")]

    with pytest.raises(EngineError, match="without a finish reason"):
        await collect(llm.reply(REQUEST))


async def test_an_error_within_the_stream_fails_the_reply(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [text("Hello"), {"error": {"message": "out of memory"}}]

    with pytest.raises(EngineError, match="failed within the reply: out of memory"):
        await collect(llm.reply(REQUEST))


async def test_what_is_not_json_fails_the_reply(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = ["<html>"]

    with pytest.raises(EngineError, match="not a chat completion"):
        await collect(llm.reply(REQUEST))


@pytest.mark.parametrize(
    "line",
    [
        pytest.param([1, 2], id="list"),
        pytest.param("5", id="number"),
        pytest.param(chunk(choices=["a"]), id="choice"),
        pytest.param(chunk(choices=7), id="choices"),
        pytest.param(chunk(choices=[{"index": 0, "delta": "a"}]), id="delta"),
        pytest.param(chunk(choices=[{"index": 0, "delta": {"content": ["a"]}}]), id="content"),
        pytest.param(calls({"index": 0, "function": {"name": "lamp", "arguments": {"on": True}}}), id="arguments"),
        pytest.param(calls({"index": [0], "function": {"name": "lamp"}}), id="index"),
        pytest.param(chunk(usage={"prompt_tokens": "many"}), id="usage"),
    ],
)
async def test_what_is_no_chunk_fails_the_reply(endpoint: Endpoint, llm: Llm, line: object) -> None:
    endpoint.lines = [line, end("stop"), "[DONE]"]

    with pytest.raises(EngineError, match="sent what is not a chat completion: found "):
        await collect(llm.reply(REQUEST))


async def test_a_reply_that_breaks_off_says_so(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.lines = [text("Hello")]
    endpoint.breaks = True

    with pytest.raises(EngineError, match="broke off within the reply: "):
        await collect(llm.reply(REQUEST))


async def test_a_server_that_never_speaks_is_given_up(endpoint: Endpoint) -> None:
    llm = OpenAiLlm(base_url=endpoint.url, retries=0, first_token_timeout_s=0.02)
    await llm.load()
    role_only = chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    endpoint.lines, endpoint.stalls = [role_only], True

    with pytest.raises(EngineError, match=r"sent no first token within 0\.02 s"):
        await collect(llm.reply(REQUEST))
    await llm.close()


async def test_a_server_that_falls_silent_is_given_up(endpoint: Endpoint) -> None:
    llm = OpenAiLlm(base_url=endpoint.url, retries=0, token_timeout_s=0.05)
    await llm.load()
    endpoint.lines, endpoint.stalls = [text("Hello")], True

    with pytest.raises(EngineError, match=r"sent nothing more within 0\.05 s"):
        await collect(llm.reply(REQUEST))
    await llm.close()


async def test_a_refused_connection_names_the_url_and_the_setting() -> None:
    # Port 9 is `discard`; a port below 1024 is not handed to a test server.
    llm = OpenAiLlm(base_url="http://user:password@127.0.0.1:9/v1", retries=0)

    with pytest.raises(EngineMissingError, match=r"cannot reach http://127\.0\.0\.1:9/v1 \(llm\.base_url\)"):
        await llm.load()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_names_the_setting_and_not_the_key(endpoint: Endpoint, status: int) -> None:
    endpoint.models, endpoint.models_status = None, status
    llm = OpenAiLlm(base_url=endpoint.url, api_key=KEY, retries=0)

    with pytest.raises(EngineMissingError, match=rf"refused the key \({status}\): set llm\.api_key") as caught:
        await llm.load()
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_an_error_that_repeats_the_key_does_not_leak_it(endpoint: Endpoint, llm: Llm) -> None:
    endpoint.refuses = {"": (429, f"too many requests for {KEY}")}

    with pytest.raises(EngineError, match=r"answered 429: .*too many requests for ") as caught:
        await collect(llm.reply(REQUEST))
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("status", [404, 500])
async def test_an_endpoint_that_cannot_list_its_models_is_taken(endpoint: Endpoint, status: int) -> None:
    endpoint.models, endpoint.models_status = None, status
    llm = OpenAiLlm(base_url=endpoint.url, model="mine", retries=0)

    await llm.load()
    await llm.close()

    assert endpoint.asked[0]["model"] == "mine"


async def test_without_a_model_and_without_a_list_the_setting_is_named(endpoint: Endpoint) -> None:
    endpoint.models = []

    with pytest.raises(EngineMissingError, match=r"lists no models: set llm\.model"):
        await OpenAiLlm(base_url=endpoint.url, retries=0).load()


async def test_a_model_that_the_endpoint_does_not_list_is_warned_about(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    llm = OpenAiLlm(base_url=endpoint.url, model="other", retries=0)

    with caplog.at_level(logging.WARNING):
        await llm.load()
    await llm.close()

    assert "does not list model 'other', but tiny" in caplog.text


async def test_an_engine_that_is_not_loaded_says_so() -> None:
    with pytest.raises(RuntimeError, match="comes after load"):
        await collect(OpenAiLlm(base_url="http://127.0.0.1:9/v1").reply(REQUEST))


async def test_closing_twice_or_unloaded_is_fine(llm: Llm) -> None:
    await llm.close()
    await llm.close()
    await OpenAiLlm(base_url="http://127.0.0.1:9/v1").close()


def test_messages_show_what_was_heard_and_join_neighbours() -> None:
    items = (
        said("assistant", "Welcome, what would you like to drink?", heard="Welcome,"),
        said("user", "A latte."),
        said("assistant", "One latte.", heard=""),
        said("user", "No, two."),
    )

    assert build_messages(LlmRequest(items=items, instructions="Sell coffee.")) == [
        {"role": "system", "content": "Sell coffee."},
        {"role": "assistant", "content": "Welcome,"},
        {"role": "user", "content": "A latte.\nNo, two."},
    ]


def test_neighbouring_calls_stand_in_one_message_and_their_outputs_behind_it() -> None:
    items = (
        said("user", "Light and time!"),
        FunctionCall(id="i1", call_id="a", name="lamp", arguments="{}"),
        FunctionCall(id="i2", call_id="b", name="time", arguments="{}"),
        FunctionCall(id="i3", call_id="unanswered", name="door", arguments="{}"),
        FunctionOutput(id="i4", call_id="b", output="noon"),
        FunctionOutput(id="i5", call_id="a", output="on"),
        FunctionOutput(id="i6", call_id="unasked", output="?"),
        FunctionCall(id="i7", call_id="c", name="lamp", arguments='{"on": false}'),
        FunctionOutput(id="i8", call_id="c", output="off"),
    )

    _, both, first, second, third, output = build_messages(LlmRequest(items=items))

    assert [call["id"] for call in both["tool_calls"]] == ["a", "b"]
    assert both["content"] is None
    assert first == {"role": "tool", "tool_call_id": "a", "content": "on"}
    assert second == {"role": "tool", "tool_call_id": "b", "content": "noon"}
    assert third["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "lamp", "arguments": '{"on": false}'}}
    ]
    assert output == {"role": "tool", "tool_call_id": "c", "content": "off"}
