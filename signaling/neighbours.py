"""The media processes of one server, as one of them sees them.

All listen on the same port (SO_REUSEPORT), so that a request may reach any; and each on a Unix socket of its own, over
which the others pass on what is meant for it:

    a new call             goes to the process with the fewest calls that is ready
    a call that is there   its id begins with the number of its process: rtc_02...; it stands in the path, or, where
                           a WebSocket joins the call (/v1/realtime?call_id=...), in the query
    /metrics               every process's own, summed; of one that does not answer, what it had counted before
    /health                ready if any process is

What they know of each other stands on the board.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

from aiohttp import web

from media_server.errors import NotFoundError, PeerGoneError, WarmingUpError
from signaling.board import Board
from signaling.middleware import read_body
from signaling.proxy import Proxy, is_websocket
from signaling.realtime import CALLS, REALTIME
from signaling.shared_folder import BOARD

logger = logging.getLogger(__name__)

_REMOTE = "Parley-Remote"
"""The header in which a neighbour says from where a request came to it; in what others send it means nothing."""

_NOT_PASSED_ON = {_REMOTE.lower(), "content-encoding"}
"""Of a request's headers; aiohttp has undone the encoding of its body."""


def socket_of(folder: Path, index: int) -> Path:
    """Return the Unix socket of a process; it is there as soon as the process listens."""
    return folder / f"{index}.sock"


class Neighbours:
    """One's own place among the media processes of a server."""

    def __init__(
        self, folder: Path, index: int, n: int, *, body_limit_s: float = 10.0, ask_limit_s: float = 1.0
    ) -> None:
        """Take place `index` of `n`.

        Args:
            folder: the server's own, for the board and the sockets.
            index: from 0.
            n: how many processes there are.
            body_limit_s: how long a body may take to arrive that is to be passed on.
            ask_limit_s: how long the others may take to tell their figures, or how they are.
        """
        self.index = index
        self.folder = folder
        self.board = Board(folder / BOARD, n)
        self._body_limit_s = body_limit_s
        self._ask_limit_s = ask_limit_s
        self._counted_before = self.board.read_counted(index)
        self._calls = 0
        self._ready = False
        self._ways: dict[int, Proxy] = {}
        self._closed = False

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

    def beat(self) -> None:
        """Tell the supervisor that the loop turns."""
        self.board.beat(self.index)

    async def close(self) -> None:
        """Give everything back."""
        self.note_ready(False)
        self._closed = True
        for way in self._ways.values():
            await way.close()

    @contextlib.contextmanager
    def given(self) -> Generator[int, None, None]:
        """Give a new call to the process with the fewest, and count it there until the block ends.

        By then it was admitted, and counts there as a call for the few milliseconds that the answer takes as well; or
        it was refused.
        """
        index = self.board.give(self.index)
        try:
            yield self.index if index is None else index
        finally:
            if index is not None:
                self.board.take_back(self.index, index)

    def whose(self, request: web.Request) -> int:
        """Return the process that is to answer a request: that of its call, or else one's own."""
        try:
            index = int(_call_id(request).removeprefix("rtc_")[:2], 16)
        except ValueError:
            return self.index
        return index if 0 <= index < self.board.n else self.index

    async def pass_on(self, request: web.Request, index: int) -> web.StreamResponse:
        """Have another process answer a request, or open a WebSocket.

        Raises:
            NotFoundError: it is not there, so neither is the call.
            WarmingUpError: it is not there, and the call would have been new.
            BadRequestError: the body did not arrive in time.
        """
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON}
        headers[_REMOTE] = request.remote or ""
        try:
            if is_websocket(request):
                return await self._way_to(index).tunnel(request, headers)
            body = await read_body(request, self._body_limit_s)
            return await self._way_to(index).ask(request.method, request.path_qs, headers, body)
        except PeerGoneError as error:
            logger.warning("process %d does not answer %s: %s", index, request.path, error)
            if request.path == CALLS:
                raise WarmingUpError("a media process is being replaced", retry_after_s=1) from None
            raise NotFoundError(f"there is no call {_call_id(request)[:80]!r}", param="call_id") from None

    async def healthy(self) -> web.Response | None:
        """Return what another process says of its health that takes calls; None: there is none."""
        answers = await self._ask_others("/health", [index for index in self.board.ready if index != self.index])
        return next(iter(answers.values()), None)

    def count_on(self, text: str) -> str:
        """Return one's own figures with what those before us at this place had counted, and write that on the board."""
        figures = sum_metrics([text, _show(text, self._counted_before)])
        self.board.write_counted(self.index, list(_counters(figures).values()))
        return figures

    async def add_others(self, text: str) -> str:
        """Return the figures of all processes; of one that does not answer in time, what it had counted before."""
        others = [index for index in range(self.board.n) if index != self.index]
        answers = await self._ask_others("/metrics", others)
        texts = [text, *map(_text, answers.values())]
        texts += [_show(text, self.board.read_counted(index)) for index in others if index not in answers]
        return sum_metrics(texts)

    async def _ask_others(self, path: str, others: list[int]) -> dict[int, web.Response]:
        """Return what other processes answer to GET with 200; without those that do not within `ask_limit_s`."""

        async def ask(index: int) -> web.Response:
            return await self._way_to(index).ask("GET", path, {}, b"", self._ask_limit_s)

        answers = await asyncio.gather(*map(ask, others), return_exceptions=True)
        return {
            index: answer
            for index, answer in zip(others, answers, strict=True)
            if isinstance(answer, web.Response) and answer.status == 200
        }

    def _way_to(self, index: int) -> Proxy:
        if self._closed:
            raise PeerGoneError("this process is stopping")
        if index not in self._ways:
            self._ways[index] = Proxy(socket_of(self.folder, index))
        return self._ways[index]


NEIGHBOURS = web.AppKey("neighbours", Neighbours)


@web.middleware
async def pass_on(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Answer what is ours, pass on what is another process's, and put together what is everybody's."""
    neighbours = request.app[NEIGHBOURS]
    from_neighbour = _came_from_neighbour(request)
    if from_neighbour:
        request = request.clone(remote=request.headers.get(_REMOTE, ""))
    elif request.path == CALLS and request.method == "POST":
        with neighbours.given() as index:
            return await (handler(request) if index == neighbours.index else neighbours.pass_on(request, index))
    elif (index := neighbours.whose(request)) != neighbours.index:
        return await neighbours.pass_on(request, index)
    response = await handler(request)
    if request.path == "/metrics" and isinstance(response, web.Response):
        figures = neighbours.count_on(_text(response))
        response.text = figures if from_neighbour else await neighbours.add_others(figures)
    elif request.path == "/health" and response.status == 503 and not from_neighbour:
        response = await neighbours.healthy() or response
    return response


def _call_id(request: web.Request) -> str:
    """Return the id of the call that a request is about; it is empty if there is none."""
    if request.path == REALTIME:
        return request.query.get("call_id", "")
    return request.path.removeprefix(f"{CALLS}/").partition("/")[0] if request.path.startswith(f"{CALLS}/") else ""


def _came_from_neighbour(request: web.Request) -> bool:
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return isinstance(name, str)  # a Unix socket's name is its path; others have a tuple


def _text(response: web.Response) -> str:
    body = response.body
    return body.decode() if isinstance(body, bytes) else ""


def _counters(text: str) -> dict[str, float]:
    """Return those figures of a process that only grow, in the order in which all show them: a gauge ends with it."""
    counters = {}
    grows = True
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            grows = not line.endswith(" gauge")
        elif grows and line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            counters[name] = float(value)
    return counters


def _show(text: str, values: list[float]) -> str:
    """Return the counters of a process, in Prometheus' text format, by the names that they have in another's `text`."""
    return "\n".join(f"{name} {value:.15g}" for name, value in zip(_counters(text), values, strict=False))


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
