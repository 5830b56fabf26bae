"""For those who run the server, and the page for those who call it.

GET  /health    200 while calls can be taken, 503 while engines are warming or down, or we stop; always JSON.
                Of several processes one that can take calls is enough, and the one that answers (neighbours.py)
GET  /metrics   the figures, for Prometheus
GET  /          the browser client; its files under /static/
"""

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web

from media_server.config import ROOT
from signaling.house import HOUSE, VERSION
from signaling.neighbours import NEIGHBOURS

STATIC = ROOT / "static"

# Browsers insist on a module's type, and what a machine's own table says of it differs from machine to machine.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}

_FILES = web.AppKey("files", dict[str, Path])


def add_routes(app: web.Application) -> None:
    """Add the routes of operations and of the page."""
    app.router.add_get("/health", _health)
    app.router.add_get("/metrics", _metrics)
    # The files are looked up once: nothing that a client writes becomes part of a path.
    app[_FILES] = {file.relative_to(STATIC).as_posix(): file for file in STATIC.rglob("*") if file.suffix in _TYPES}
    app.router.add_get("/", _page)
    app.router.add_get("/static/{name:.+}", _static_file)


async def _health(request: web.Request) -> web.Response:
    house = request.app[HOUSE]
    state = house.state
    health: dict[str, Any] = {
        "status": state,
        "engines": house.engines.states(),
        "calls": house.manager.calls + house.manager.calls_elsewhere,
        "max_calls": house.config.server.max_calls,
        "version": VERSION,
    }
    neighbours = request.app.get(NEIGHBOURS)
    if neighbours is not None:
        health["processes"] = {"ready": len(neighbours.board.ready), "of": neighbours.board.n}
    response = web.json_response(health, status=200 if state == "ready" else 503)
    response.headers["Cache-Control"] = "no-store"
    if state != "ready":
        response.headers["Retry-After"] = str(house.config.server.retry_after_s)
    return response


async def _metrics(request: web.Request) -> web.Response:
    metrics = request.app[HOUSE].metrics
    metrics.gauge("tasks", len(asyncio.all_tasks()))
    body = metrics.render().encode()
    content_type = "text/plain; version=0.0.4; charset=utf-8"
    return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


async def _page(_: web.Request) -> web.FileResponse:
    return _send(STATIC / "index.html")


async def _static_file(request: web.Request) -> web.FileResponse:
    file = request.app[_FILES].get(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    return _send(file)


def _send(file: Path) -> web.FileResponse:
    return web.FileResponse(file, headers={"Content-Type": _TYPES[file.suffix]})
