"""A chat endpoint on loopback that speaks chat completions as the various servers do."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

KEY = "sk-very-secret-key"


class Endpoint:
    """A server that answers every chat with `lines`, and remembers what it was asked.

    Attributes:
        lines: the server-sent events' data, dicts as JSON.
        breaks: after the lines, the connection is closed in the middle of the answer.
        stalls: after the lines, nothing more comes, and the connection stays open.
        refuses: answer with a status and a message those requests whose body holds the key; "" is in all of them.
        models: what /models lists; None: it answers 500.
        reached: set once a client asks.
        gone: set once a client left before the end.
    """

    def __init__(self) -> None:
        self.lines: list[Any] = [text("Hello"), end("stop"), "[DONE]"]
        self.breaks = False
        self.stalls = False
        self.refuses: dict[str, tuple[int, str]] = {}
        self.models: list[str] | None = ["tiny"]
        self.models_status = 500
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reached = asyncio.Event()
        self.gone = asyncio.Event()

    async def list_models(self, request: web.Request) -> web.Response:
        if self.models is None:
            return web.json_response({"error": {"message": f"no list for {KEY}"}}, status=self.models_status)
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.reached.set()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        for key, (status, message) in self.refuses.items():
            if not key or key in body:
                return web.json_response({"error": {"message": message}}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in self.lines:
            data = line if isinstance(line, str) else json.dumps(line)
            await response.write(f"data: {data}\n\n".encode())
        if self.breaks and request.transport is not None:
            request.transport.close()
        if self.stalls:
            try:
                await asyncio.Event().wait()
            finally:
                self.gone.set()
        return response


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny", "choices": [], **fields}


def text(content: str) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": None}])


def calls(*tool_calls: dict[str, Any]) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {"tool_calls": list(tool_calls)}, "finish_reason": None}])


def end(reason: str) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


@asynccontextmanager
async def serving_chat() -> AsyncGenerator[Endpoint, None]:
    """Serve an endpoint on a free port."""
    endpoint = Endpoint()
    app = web.Application()
    app.router.add_get("/v1/models", endpoint.list_models)
    app.router.add_post("/v1/chat/completions", endpoint.chat)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield endpoint
    finally:
        await runner.cleanup()
