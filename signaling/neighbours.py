"""The media processes of one server, as one of them sees them.

All listen on the same port (SO_REUSEPORT), so that a request may reach any; and each on a Unix socket of its own, over
which the others pass on what is meant for it:

    a new call             goes to the process with the fewest calls that is ready
    a call that is there   its id begins with the number of its process: rtc_02...
    /metrics               every process's own, summed
    /health                ready if any process is

What they know of each other stands on the board: a small file in memory that all have mapped, with a line for each.
"""

import asyncio
import fcntl
import logging
import mmap
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from media_server.errors import NotFoundError, PeerGoneError, WarmingUpError
from signaling.middleware import read_body
from signaling.realtime import CALLS
from signaling.shared_folder import BOARD

logger = logging.getLogger(__name__)

_LINE = struct.Struct("@III")  # calls, ready, was ever ready; each line written by its own process alone
_PASS_LIMIT_S = 15.0
_REMOTE = "Parley-Remote"
"""The header in which a neighbour says from where a request came to it; in what others send it means nothing."""

_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "upgrade"}
_NOT_PASSED_ON = _HOP_BY_HOP | {_REMOTE.lower()}


class Board:
    """How many calls each process has, and whether it takes more. Reading and writing cost nothing."""

    def __init__(self, path: Path, n: int) -> None:
        """Open the board of `n` processes; it is made if it is not there."""
        with path.open("a+b") as file:
            file.truncate(n * _LINE.size)
            self._lines = mmap.mmap(file.fileno(), n * _LINE.size)
        self.n = n
        self._path = path

    def write(self, index: int, *, calls: int, ready: bool) -> None:
        """Write one's own line."""
        _LINE.pack_into(self._lines, index * _LINE.size, calls, ready, ready or self.was_ready(index))

    def take_place(self, index: int, *, calls: int, limit: int) -> bool:
        """Write one's own line if that makes at most `limit` calls in all; return whether it does.

        Under a lock, since two processes that count at the same time would both take the last place. It is held for
        some microseconds, and who dies gives it back.
        """
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            before, ready = self.read(index)
            fits = self.calls - before + calls <= limit
            if fits:
                self.write(index, calls=calls, ready=ready)
            return fits

    def clear(self, index: int) -> None:
        """Empty the line of a process that has died."""
        _LINE.pack_into(self._lines, index * _LINE.size, 0, False, False)

    def read(self, index: int) -> tuple[int, bool]:
        """Return a line: calls, and whether more are taken."""
        calls, ready, _ = _LINE.unpack_from(self._lines, index * _LINE.size)
        return calls, bool(ready)

    def was_ready(self, index: int) -> bool:
        """Return whether the process has ever taken calls."""
        return bool(_LINE.unpack_from(self._lines, index * _LINE.size)[2])

    @property
    def calls(self) -> int:
        """Return how many calls there are in all."""
        return sum(self.read(index)[0] for index in range(self.n))

    @property
    def ready(self) -> list[int]:
        """Return the processes that take calls, the emptiest first."""
        lines = [(self.read(index), index) for index in range(self.n)]
        return [index for (_, ready), index in sorted(lines, key=lambda line: line[0][0]) if ready]


def socket_of(folder: Path, index: int) -> Path:
    """Return the Unix socket of a process; it is there as soon as the process listens."""
    return folder / f"{index}.sock"


class Neighbours:
    """One's own place among the media processes of a server."""

    def __init__(self, folder: Path, index: int, n: int, *, body_limit_s: float = 10.0) -> None:
        """Take place `index` of `n`.

        Args:
            folder: the server's own, for the board and the sockets.
            index: from 0.
            n: how many processes there are.
            body_limit_s: how long a body may take to arrive that is to be passed on.
        """
        self.index = index
        self.folder = folder
        self.board = Board(folder / BOARD, n)
        self._body_limit_s = body_limit_s
        self._calls = 0
        self._ready = False
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    @property
    def socket(self) -> str:
        """Return the path of one's own Unix socket."""
        return str(socket_of(self.folder, self.index))

    @property
    def call_prefix(self) -> str:
        """Return how the ids of one's own calls begin."""
        return f"rtc_{self.index:02x}"

    @property
    def calls_elsewhere(self) -> int:
        """Return how many calls the others have."""
        return self.board.calls - self.board.read(self.index)[0]

    def take_place(self, calls: int, limit: int) -> bool:
        """Tell the others of `calls` here, one more than before, unless all together then have more than `limit`."""
        fits = self.board.take_place(self.index, calls=calls, limit=limit)
        if fits:
            self._calls = calls
        return fits

    def note_calls(self, calls: int) -> None:
        """Tell the others how many calls there are here."""
        self._calls = calls
        self.board.write(self.index, calls=self._calls, ready=self._ready)

    def note_ready(self, ready: bool) -> None:
        """Tell the others whether calls can be taken here."""
        self._ready = ready
        self.board.write(self.index, calls=self._calls, ready=self._ready)

    async def close(self) -> None:
        """Give everything back."""
        self.note_ready(False)
        for session in self._sessions.values():
            await session.close()

    def whose(self, request: web.Request) -> int:
        """Return the process that is to answer a request."""
        if request.path == CALLS:
            ready = self.board.ready if request.method == "POST" else []
            return ready[0] if ready else self.index
        try:
            index = int(_call_id(request).removeprefix("rtc_")[:2], 16)
        except ValueError:
            return self.index
        return index if index < self.board.n else self.index

    async def pass_on(self, request: web.Request, index: int) -> web.Response:
        """Have another process answer a request.

        Raises:
            NotFoundError: it is not there, so neither is the call.
            WarmingUpError: it is not there, and the call would have been new.
            BadRequestError: the body did not arrive in time.
        """
        body = await read_body(request, self._body_limit_s)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON}
        headers[_REMOTE] = request.remote or ""
        try:
            return await self._ask(index, request.method, request.path_qs, headers, body)
        except PeerGoneError as error:
            logger.warning("process %d does not answer %s: %s", index, request.path, error)
            if request.path == CALLS:
                raise WarmingUpError("a media process is being replaced", retry_after_s=1) from None
            raise NotFoundError(f"there is no call {_call_id(request)[:80]!r}", param="call_id") from None

    async def ask_all(self, path: str) -> list[web.Response]:
        """Return what the other processes answer to GET; without those that do not."""
        others = [index for index in range(self.board.n) if index != self.index]
        answers = await asyncio.gather(
            *(self._ask(index, "GET", path, {}, b"") for index in others), return_exceptions=True
        )
        return [answer for answer in answers if isinstance(answer, web.Response)]

    async def _ask(self, index: int, method: str, path: str, headers: dict[str, str], body: bytes) -> web.Response:
        session = self._sessions.get(index)
        if session is None:
            connector = aiohttp.UnixConnector(str(socket_of(self.folder, index)), limit=100)
            session = self._sessions[index] = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(_PASS_LIMIT_S)
            )
        try:
            async with session.request(method, f"http://media{path}", headers=headers, data=body) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerGoneError(f"{type(error).__name__}: {error}") from error


NEIGHBOURS = web.AppKey("neighbours", Neighbours)


@web.middleware
async def pass_on(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Answer what is ours, pass on what is another process's, and put together what is everybody's."""
    neighbours = request.app[NEIGHBOURS]
    if _came_from_neighbour(request):
        return await handler(request.clone(remote=request.headers.get(_REMOTE, "")))
    if request.path == CALLS or request.path.startswith(f"{CALLS}/"):
        index = neighbours.whose(request)
        if index != neighbours.index:
            return await neighbours.pass_on(request, index)
    response = await handler(request)
    if request.path == "/metrics" and isinstance(response, web.Response):
        texts = [_text(response), *(_text(answer) for answer in await neighbours.ask_all("/metrics"))]
        response.text = sum_metrics(texts)
    return response


def _call_id(request: web.Request) -> str:
    return request.path.removeprefix(f"{CALLS}/").partition("/")[0]


def _came_from_neighbour(request: web.Request) -> bool:
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return isinstance(name, str)  # a Unix socket's name is its path; others have a tuple


def _text(response: web.Response) -> str:
    body = response.body
    return body.decode() if isinstance(body, bytes) else ""


def sum_metrics(texts: list[str]) -> str:
    """Return the figures of several processes, in Prometheus' text format, as those of one: all of them add up."""
    totals: defaultdict[str, float] = defaultdict(float)
    for text in texts:
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                totals[name] += float(value)
    lines = []
    for line in texts[0].splitlines():
        name = line.rpartition(" ")[0]
        lines.append(line if line.startswith("#") or name not in totals else f"{name} {totals[name]:.15g}")
    return "\n".join(lines) + "\n"
