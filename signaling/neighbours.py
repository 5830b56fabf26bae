"""The media processes of one server, as one of them sees them.

All listen on the same port (SO_REUSEPORT), so that a request may reach any; and each on a Unix socket of its own, over
which the others pass on what is meant for it:

    a new call             goes to the process with the fewest calls that is ready
    a call that is there   its id begins with the number of its process: rtc_02...
    /metrics               every process's own, summed; of one that does not answer, what it had counted before
    /health                ready if any process is

What they know of each other stands on the board: a small file in memory that all have mapped, with a line for each.
"""

import asyncio
import contextlib
import fcntl
import logging
import mmap
from array import array
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from media_server.errors import NotFoundError, PeerGoneError, WarmingUpError
from signaling.middleware import read_body
from signaling.realtime import CALLS
from signaling.shared_folder import BOARD

logger = logging.getLogger(__name__)

_CALLS, _READY, _WAS_READY, _GIVEN = range(4)
"""The places in a line; from the last on there is one for each process. Each line is written by its process alone."""

_COUNTERS = 1024
"""Of `/metrics`, that the board has room for: there are about 260."""

_PASS_LIMIT_S = 15.0
_REMOTE = "Parley-Remote"
"""The header in which a neighbour says from where a request came to it; in what others send it means nothing."""

_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding", "upgrade"}
_NOT_PASSED_ON = _HOP_BY_HOP | {_REMOTE.lower()}


class Board:
    """How many calls each process has, whether it takes more, and what it has counted. Reading costs nothing.

    What was counted belongs to a place, and goes on with the next process there.
    """

    def __init__(self, path: Path, n: int) -> None:
        """Open the board of `n` processes; it is made if it is not there."""
        counted, lines = array("d", [0.0]).itemsize * _COUNTERS * n, array("I", [0]).itemsize * (_GIVEN + n) * n
        with path.open("a+b") as file:
            file.truncate(counted + lines)
            shared = memoryview(mmap.mmap(file.fileno(), counted + lines))
        self.n = n
        self._path = path
        self._width = _GIVEN + n
        self._counted = shared[:counted].cast("d")
        self._lines = shared[counted:].cast("I")

    def write(self, index: int, *, calls: int, ready: bool) -> None:
        """Write one's own line."""
        begin = index * self._width
        self._lines[begin + _CALLS] = calls
        self._lines[begin + _READY] = ready
        if ready:
            self._lines[begin + _WAS_READY] = True

    def take_place(self, index: int, *, calls: int, limit: int) -> bool:
        """Write one's own line if that makes at most `limit` calls in all; return whether it does.

        Under a lock, since two processes that count at the same time would both take the last place.
        """
        with self._locked():
            before, ready = self.read(index)
            fits = self.calls - before + calls <= limit
            if fits:
                self.write(index, calls=calls, ready=ready)
            return fits

    def give(self, giver: int) -> int | None:
        """Return the ready process with the fewest calls, `giver` itself if it is one of them; None: none is ready.

        What was given counts as a call there until `take_back`. Under a lock, since two processes that choose at the
        same time would choose the same.
        """
        with self._locked():
            loads = [(self.read(index)[0] + self.given(index), index != giver, index) for index in self.ready]
            if not loads:
                return None
            _, _, index = min(loads)
            self._lines[giver * self._width + _GIVEN + index] += 1
            return index

    def take_back(self, giver: int, index: int) -> None:
        """No longer count a call that `giver` gave to a process: it was admitted there, or refused."""
        self._lines[giver * self._width + _GIVEN + index] -= 1

    def given(self, index: int) -> int:
        """Return how many calls were given to a process that has not answered yet."""
        return sum(self._lines[_GIVEN + index :: self._width])

    def write_counted(self, index: int, values: Sequence[float]) -> None:
        """Write what one's own place has counted.

        Each value only grows, so nobody minds reading some of them from before and some from after.

        Raises:
            ValueError: there are more than 1,024.
        """
        padded = array("d", [*values, *[0.0] * (_COUNTERS - len(values))])
        self._counted[index * _COUNTERS : (index + 1) * _COUNTERS] = memoryview(padded)

    def read_counted(self, index: int) -> list[float]:
        """Return what a place has counted, as it was written last; then zeros."""
        return list(self._counted[index * _COUNTERS : (index + 1) * _COUNTERS])

    def clear(self, index: int) -> None:
        """Empty the line of a process that has died, but for what its place has counted."""
        for place in range(index * self._width, (index + 1) * self._width):
            self._lines[place] = 0

    def read(self, index: int) -> tuple[int, bool]:
        """Return a line: calls, and whether more are taken."""
        begin = index * self._width
        return self._lines[begin + _CALLS], bool(self._lines[begin + _READY])

    def was_ready(self, index: int) -> bool:
        """Return whether the process has ever taken calls."""
        return bool(self._lines[index * self._width + _WAS_READY])

    @property
    def calls(self) -> int:
        """Return how many calls there are in all."""
        return sum(self.read(index)[0] for index in range(self.n))

    @property
    def ready(self) -> list[int]:
        """Return the processes that take calls."""
        return [index for index in range(self.n) if self.read(index)[1]]

    @contextlib.contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Hold the board's lock. It is held for some microseconds, and who dies gives it back."""
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            yield


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
        """Return the process that is to answer a request about a call that is there."""
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
        answers = await asyncio.gather(
            *(self._ask(index, "GET", path, {}, b"", self._ask_limit_s) for index in others), return_exceptions=True
        )
        return {
            index: answer
            for index, answer in zip(others, answers, strict=True)
            if isinstance(answer, web.Response) and answer.status == 200
        }

    async def _ask(
        self,
        index: int,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        limit_s: float = _PASS_LIMIT_S,
    ) -> web.Response:
        session = self._sessions.get(index)
        if session is None:
            connector = aiohttp.UnixConnector(str(socket_of(self.folder, index)), limit=100)
            session = self._sessions[index] = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        limit = aiohttp.ClientTimeout(limit_s)
        url = f"http://media{path}"
        try:
            async with session.request(method, url, headers=headers, data=body, timeout=limit) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerGoneError(f"{type(error).__name__}: {error}") from error


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
    elif request.path.startswith(f"{CALLS}/") and (index := neighbours.whose(request)) != neighbours.index:
        return await neighbours.pass_on(request, index)
    response = await handler(request)
    if request.path == "/metrics" and isinstance(response, web.Response):
        figures = neighbours.count_on(_text(response))
        response.text = figures if from_neighbour else await neighbours.add_others(figures)
    elif request.path == "/health" and response.status == 503 and not from_neighbour:
        response = await neighbours.healthy() or response
    return response


def _call_id(request: web.Request) -> str:
    return request.path.removeprefix(f"{CALLS}/").partition("/")[0]


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
