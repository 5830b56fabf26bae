"""Answers through any endpoint that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, OpenAI and others.

    what we keep             what is sent
    instructions             a system message
    SpokenMessage            a message of its role, with what was heard; neighbours of one role are joined, because the
                             chat templates of some models want the roles to alternate
    FunctionCall             an assistant message with `tool_calls`, neighbours together, then a tool message for each;
    FunctionOutput           a call without an output is left out: endpoints refuse it

Servers differ. One that rejects `stream_options` is asked again without; one that sends no usage, or no `[DONE]`, is
taken as it is. A reply without a finish reason has been torn off and fails.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Mapping
from contextlib import aclosing
from itertools import groupby
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import (
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from openai.types.completion_usage import CompletionUsage

from media_server.conversation import FunctionCall, FunctionOutput, Item, SpokenMessage, Usage, new_id
from media_server.engines.protocols import Finished, LlmDelta, LlmRequest, TextDelta, Tool, ToolCallDelta, ToolChoice
from media_server.errors import EngineError, EngineMissingError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
AFTER_FINISH_TIMEOUT_S = 1.0
"""How long usage and the end of the stream are waited for once the reply itself is complete."""

SHOWN_CHARACTERS = 200
"""How much of an endpoint's own words an error repeats."""

Answer = TypeVar("Answer")
Reason = Literal["stop", "tool_calls", "length", "content_filter"]


class OpenAiLlm:
    """A language model behind an OpenAI-compatible endpoint."""

    name = "openai"

    def __init__(
        self,
        *,
        base_url: str,
        model: str = "",
        api_key: str = "",
        first_token_timeout_s: float = 15.0,
        token_timeout_s: float = 10.0,
        load_timeout_s: float = 60.0,
        retries: int = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the endpoint; nothing is sent before `load`.

        Args:
            base_url: such as `http://127.0.0.1:8000/v1`.
            model: empty: the first one that the endpoint lists.
            api_key: empty: none is sent.
            first_token_timeout_s: from the request to the first text or tool call.
            token_timeout_s: between two chunks after that.
            load_timeout_s: for the warm-up; an endpoint may have to load its model first.
            retries: after a connection that broke, or an answer such as 429 or 503.
            extra: further fields of the request's body, such as a `seed` or vLLM's `chat_template_kwargs`.
        """
        self.why = f"{model or 'the first model'} at {_shown_url(base_url)}"
        self._base_url = base_url
        self._model = model
        self._api_key = api_key
        self._first_token_timeout_s = first_token_timeout_s
        self._token_timeout_s = token_timeout_s
        self._load_timeout_s = load_timeout_s
        self._retries = retries
        self._extra = dict(extra or {})
        self._usage_asked = True
        # The client insists on a key, and would send it.
        self._headers = {} if api_key else {"Authorization": openai.Omit()}
        self._client: openai.AsyncOpenAI | None = None

    async def load(self) -> None:
        """Find the endpoint and the model, and have one token made.

        Raises:
            EngineMissingError: the endpoint cannot be reached, refuses us, or has no such model.
        """
        self._client = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key or "none",
            max_retries=self._retries,
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )
        try:
            served = await self._served_models()
            if not self._model and not served:
                raise EngineMissingError(f"{_shown_url(self._base_url)} lists no models: set llm.model")
            self._model = self._model or served[0]
            if served and self._model not in served:
                logger.warning("%s does not list model %r, but %s", self.name, self._model, ", ".join(served)[:200])
            await self._warm()
        except EngineError as error:
            await self.close()
            raise EngineMissingError(str(error)) from None
        self.why = f"{self._model} at {_shown_url(self._base_url)}"

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def reply(self, request: LlmRequest) -> AsyncGenerator[LlmDelta, None]:
        """Yield the reply as it is written. Closing the generator closes the HTTP response."""
        reader = _Reader()
        async with aclosing(self._chunks(request, self._first_token_timeout_s)) as chunks:
            async for chunk in chunks:
                for delta in reader.read(chunk):
                    yield delta
        if reader.reason is None:
            raise EngineError(f"{_shown_url(self._base_url)} ended the reply without a finish reason")
        if reader.usage is not None:
            yield reader.usage
        yield Finished(reader.reason)

    async def _served_models(self) -> list[str]:
        """Return the ids of the models that the endpoint lists; none where it cannot list them."""
        assert self._client is not None
        try:
            async with asyncio.timeout(self._load_timeout_s):
                page = await self._client.models.list(extra_headers=self._headers)
        except TimeoutError:
            raise EngineMissingError(
                f"{_shown_url(self._base_url)} (llm.base_url) did not answer within {self._load_timeout_s:g} s"
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            raise self._failure(error) from None
        except (openai.APIError, ValueError):
            return []
        # A server that answers with something else than a list gives an object without `data`.
        return [model.id for model in getattr(page, "data", None) or ()]

    async def _warm(self) -> None:
        hello = SpokenMessage(id="warm_up", role="user", modality="text", written="Hello")
        request = LlmRequest(items=(hello,), max_tokens=1)
        async with aclosing(self._chunks(request, self._load_timeout_s)) as chunks:
            async for _ in chunks:
                pass

    async def _chunks(
        self, request: LlmRequest, first_token_timeout_s: float
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """Yield what the endpoint sends, each within its limit.

        Raises:
            EngineError: the endpoint failed or was too slow.
        """
        clock = asyncio.get_running_loop().time
        limit_s, what = first_token_timeout_s, "no first token"
        deadline_s = clock() + limit_s
        answered = spoke = finished = False
        try:
            async with await _until(deadline_s, self._open(request)) as stream:
                answered = True
                while (chunk := await _until(deadline_s, anext(stream, None))) is not None:
                    _check_shape(chunk)
                    yield chunk
                    spoke = spoke or _says_something(chunk)
                    finished = finished or _finishes(chunk)
                    if finished:
                        deadline_s = clock() + AFTER_FINISH_TIMEOUT_S
                    elif spoke:
                        limit_s, what = self._token_timeout_s, "nothing more"
                        deadline_s = clock() + limit_s
        except TimeoutError:
            if not finished:
                raise EngineError(f"{_shown_url(self._base_url)} sent {what} within {limit_s:g} s") from None
        except (openai.APIError, ValueError) as error:
            if not finished:
                raise self._failure(error, answered=answered) from None

    async def _open(self, request: LlmRequest) -> openai.AsyncStream[ChatCompletionChunk]:
        """Send the request; once without `stream_options` if the endpoint does not know them."""
        if not self._usage_asked:
            return await self._send(request)
        try:
            return await self._send(request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            self._usage_asked = False
            try:
                return await self._send(request)
            except openai.APIStatusError:
                self._usage_asked = True
                raise error from None

    async def _send(self, request: LlmRequest) -> openai.AsyncStream[ChatCompletionChunk]:
        if self._client is None:
            raise RuntimeError("OpenAiLlm.reply() comes after load()")
        messages: list[Any] = build_messages(request)
        tools: list[Any] = [_build_tool(tool) for tool in request.tools]
        tool_choice: Any = _build_tool_choice(request.tool_choice)
        return await self._client.chat.completions.create(
            model=self._model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True} if self._usage_asked else openai.omit,
            tools=tools or openai.omit,
            tool_choice=tool_choice if tools else openai.omit,
            # The newer name, max_completion_tokens, is not known to all compatible servers.
            max_tokens=openai.omit if request.max_tokens is None else request.max_tokens,
            temperature=openai.omit if request.temperature is None else request.temperature,
            extra_headers=self._headers,
            extra_body=self._extra or None,
        )

    def _failure(self, error: openai.APIError | ValueError, *, answered: bool = False) -> EngineError:
        """Return the error in our words, without the key. `answered`: the endpoint had begun to reply."""
        url = _shown_url(self._base_url)
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                # The endpoint's own words are left out: some repeat the key.
                return EngineError(f"{url} refused the key ({error.status_code}): set llm.api_key")
            case openai.APIStatusError():
                return EngineError(f"{url} answered {error.status_code}: {self._shown(error.message)}")
            case openai.APIConnectionError() if answered:
                return EngineError(f"{url} broke off within the reply: {self._shown(error.__cause__ or error)}")
            case openai.APIConnectionError():
                return EngineError(f"cannot reach {url} (llm.base_url): {self._shown(error.__cause__ or error)}")
            case openai.APIError():
                return EngineError(f"{url} failed within the reply: {self._shown(error.message)}")
            case _:
                return EngineError(f"{url} sent what is not a chat completion: {self._shown(error)}")

    def _shown(self, text: object) -> str:
        """Return the endpoint's words as they may be logged: short, and without the key."""
        words = str(text)
        if self._api_key:
            words = words.replace(self._api_key, "...")
        return words[:SHOWN_CHARACTERS]


class _Reader:
    """Reads the chunks of one reply.

    Attributes:
        reason: why the reply ended; None until it has.
        usage: None unless the endpoint counts.
    """

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self._calls: dict[int, tuple[str | None, str]] = {}

    def read(self, chunk: ChatCompletionChunk) -> Iterator[LlmDelta]:
        """Yield what the chunk adds."""
        if chunk.usage is not None:
            self.usage = Usage(
                input_tokens=chunk.usage.prompt_tokens or 0, output_tokens=chunk.usage.completion_tokens or 0
            )
        for choice in chunk.choices or ():
            if choice.delta is not None:
                if text := choice.delta.content or choice.delta.refusal:
                    yield TextDelta(text)
                for call in choice.delta.tool_calls or ():
                    yield self._read_call(call)
            if choice.finish_reason is not None:
                self.reason = self._read_reason(choice.finish_reason)

    def _read_call(self, call: ChoiceDeltaToolCall) -> ToolCallDelta:
        """Return the delta of a call; one with a fresh id, or at a fresh index, is a new call.

        Some servers repeat the id in every delta, some number all calls 0, some give no id at all.
        """
        name = call.function.name if call.function else None
        arguments = (call.function.arguments if call.function else None) or ""
        upstream_id, call_id = self._calls.get(call.index, (None, ""))
        if not call_id or (call.id and call.id != upstream_id):
            call_id = call.id or new_id("call")
            self._calls[call.index] = (call.id or None, call_id)
            return ToolCallDelta(call_id=call_id, name=name or "", arguments=arguments)
        return ToolCallDelta(call_id=call_id, name=None, arguments=arguments)

    def _read_reason(self, reason: str) -> Reason:
        match reason:
            case "length" | "content_filter":
                return reason
            case _:
                # Some servers say `stop` after a tool call, others have words of their own for `stop`.
                return "tool_calls" if self._calls else "stop"


def build_messages(request: LlmRequest) -> list[dict[str, Any]]:
    """Return the request's instructions and items as chat messages."""
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    outputs = {item.call_id: item.output for item in request.items if isinstance(item, FunctionOutput)}
    for kind, items in groupby(request.items, key=type):
        if kind is SpokenMessage:
            _add_spoken(messages, items)
        elif kind is FunctionCall:
            _add_calls(messages, items, outputs)
    return messages


def _add_spoken(messages: list[dict[str, Any]], items: Iterable[Item]) -> None:
    for item in items:
        if not isinstance(item, SpokenMessage) or not item.text.strip():
            continue
        last = messages[-1] if messages else {}
        if item.role != "system" and last.get("role") == item.role and "tool_calls" not in last:
            last["content"] += f"\n{item.text}"
        else:
            messages.append({"role": item.role, "content": item.text})


def _add_calls(messages: list[dict[str, Any]], items: Iterable[Item], outputs: dict[str, str]) -> None:
    calls = [item for item in items if isinstance(item, FunctionCall) and item.call_id in outputs]
    if not calls:
        return
    tool_calls = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    messages.append({"role": "assistant", "content": None, "tool_calls": tool_calls})
    messages.extend({"role": "tool", "tool_call_id": call.call_id, "content": outputs[call.call_id]} for call in calls)


def _build_tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def _build_tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _check_shape(chunk: Any) -> None:
    """Raise ValueError unless the chunk is what its type says: the client takes any JSON for one."""
    for value, wanted in _parts(chunk):
        if not isinstance(value, wanted):
            raise ValueError(f"found {str(value)[:80]!r}")


def _parts(chunk: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each part that is read and its type; a part is read only after the one that holds it."""
    text, number = str | None, int | None
    yield chunk, ChatCompletionChunk
    yield chunk.usage, CompletionUsage | None
    if chunk.usage is not None:
        yield chunk.usage.prompt_tokens, number
        yield chunk.usage.completion_tokens, number
    yield chunk.choices, list | None
    for choice in chunk.choices or ():
        yield choice, Choice
        yield choice.finish_reason, text
        yield choice.delta, ChoiceDelta | None
        if choice.delta is not None:
            yield choice.delta.content, text
            yield choice.delta.refusal, text
            yield choice.delta.tool_calls, list | None
            for call in choice.delta.tool_calls or ():
                yield call, ChoiceDeltaToolCall
                yield call.index, number
                yield call.id, text
                yield call.function, ChoiceDeltaToolCallFunction | None
                if call.function is not None:
                    yield call.function.name, text
                    yield call.function.arguments, text


def _says_something(chunk: ChatCompletionChunk) -> bool:
    deltas = [choice.delta for choice in chunk.choices or () if choice.delta is not None]
    return any(delta.content or delta.refusal or delta.tool_calls for delta in deltas)


def _finishes(chunk: ChatCompletionChunk) -> bool:
    return any(choice.finish_reason is not None for choice in chunk.choices or ())


async def _until(deadline_s: float, answer: Awaitable[Answer]) -> Answer:
    """Return the answer, or raise TimeoutError once the loop's clock has passed the deadline."""
    async with asyncio.timeout_at(deadline_s):
        return await answer


def _shown_url(url: str) -> str:
    """Return the URL without a user's name, password or query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
