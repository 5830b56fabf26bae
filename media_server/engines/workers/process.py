"""A model worker that is ours: its process is started, watched, and started again when it dies.

    dies            it is started again after 0.1, 0.2, 0.4, 0.8, 1.6 s; when the fifth of these has died as well it is
                    down, and started again once a minute. A finished stream, or a minute of life, ends the row
    cannot start    the machine has no room for another process: that is a death
    hangs           no answer for `stall_s`: it is killed, and that is a death
    cannot load     it says why; no second try; silent about it for `load_s`, it hangs

It may be shared with other processes: then it takes connections on a Unix socket. We hold that socket, so that who
connects while there is no worker waits for the next one; as long as it is down, we answer in its place and say why.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from media_server.engines.workers.frames import Kind, pack
from media_server.engines.workers.link import Link
from media_server.errors import ConfigError, EngineDownError, EngineError

logger = logging.getLogger(__name__)

RESTARTS_MAX = 5
STEADY_S = 60.0
"""A worker that was ready and lived this long did not die in a row with the one before."""

TICK_S = 1.0
ENDING_TICK_S = 0.02

_BACKLOG = 1024
"""No more than 255 processes share a worker, and some may have been replaced while it was away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient a pool is.

    Attributes:
        load_s: the longest that a worker may take to load.
        stall_s: the longest that a worker may be silent when it is asked.
        open_s: the longest that a stream waits for a worker, and then for room in it.
        stuck_s: a worker leaves one of several parents who takes in nothing for so long.
        backoff_s: the pause after the first death in a row; each further death doubles it.
        retry_s: the pause between the starts of a worker that is down.
        end_s: a worker that has not ended so long after its socket closed is killed.
    """

    load_s: float = 60.0
    stall_s: float = 10.0
    open_s: float = 10.0
    stuck_s: float = 2.0
    backoff_s: float = 0.1
    retry_s: float = 60.0
    end_s: float = 2.0


DEFAULT_LIMITS = Limits()


class WorkerProcess:
    """The place of one worker process: who holds it now, and when the next one may start.

    Attributes:
        link: our connection to it, if there is a process.
        down: why there is no worker, nor soon will be.
    """

    def __init__(self, name: str, load: dict[str, Any], limits: Limits, changed: asyncio.Event) -> None:
        """Describe it.

        Args:
            name: the engine's, for messages.
            load: of the LOAD frame: `factory`, `options`, `streams_max`.
            limits: how patient we are.
            changed: set when the worker's state may have changed.
        """
        self.link: Link | None = None
        self.down: EngineError | ConfigError | None = None
        self._name = name
        self._load = {**load, "wait_s": limits.open_s, "stuck_s": limits.stuck_s}
        self._limits = limits
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._listener: socket.socket | None = None
        self._started_at_s = 0.0
        self._start_at_s = 0.0
        self._lost_at_s: float | None = None  # the process may need a moment longer than its socket
        self._deaths = 0

    @property
    def up(self) -> bool:
        """Return whether streams can be opened in it."""
        return self.link is not None and self.link.ready and not self.link.lost

    @property
    def process_id(self) -> int | None:
        """Return its process id while it is up."""
        return self._process.pid if self.up and self._process is not None else None

    def share(self, path: Path, counts: Path, index: int) -> None:
        """Let other processes connect to it, at `path`. Before the first `tend`.

        Args:
            path: of the Unix socket, which is made.
            counts: the file of `StreamCounts`.
            index: the worker's line in it.
        """
        self._load = {**self._load, "counts": [str(counts), index]}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(_BACKLOG)

    async def tend(self) -> None:
        """Bring it on by as much as can be done now."""
        now_s = asyncio.get_running_loop().time()
        if self.link is None:
            if now_s >= self._start_at_s:
                await self._start()
            return
        if self.link.failure is not None and self.down is None:
            self.down = self.link.failure
            logger.error("%s: a worker cannot load: %s", self._name, self.down)
            self.link.abort()
        elif self.up:
            self.down = None
        if not self.link.lost:
            self._check_that_it_answers(self.link, now_s)
        if self.link.lost:
            self._bury(self.link, now_s)

    def until_next_s(self) -> float:
        """Return how long `tend` has nothing to do: until a start, or until it is asked whether it hangs.

        An ended process tells nobody: one that should end is looked at more often.
        """
        if self.link is None:
            return max(0.0, self._start_at_s - asyncio.get_running_loop().time())
        return ENDING_TICK_S if self._lost_at_s is not None else min(TICK_S, self._limits.stall_s)

    def abort(self) -> None:
        """Let it end: close its socket, and the one on which it takes connections."""
        self._answer_for_it(False)
        if self._listener is not None:
            self._listener.close()
        if self.link is not None:
            self.link.abort()

    def kill(self) -> None:
        """End it by force, if it has not ended."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self._process.kill()

    async def ended(self) -> None:
        """Wait until its process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._started_at_s = loop.time()
        self._answer_for_it(False)
        shared = [self._listener.fileno()] if self._listener is not None else []
        try:
            ours, theirs = socket.socketpair()
            with theirs, contextlib.ExitStack() as on_failure:
                on_failure.callback(ours.close)
                ours.setblocking(False)
                _, link = await loop.create_connection(lambda: Link(self._changed), sock=ours)
                on_failure.pop_all()
                on_failure.callback(link.abort)
                self._process = await _start_child(theirs.fileno(), shared)
                on_failure.pop_all()
        except OSError as error:  # no process, file or memory is to be had now
            self._count_death(loop.time(), str(error), in_a_row=True)
            return
        self.link = link
        link.ask(Kind.LOAD, self._load)

    def _check_that_it_answers(self, link: Link, now_s: float) -> None:
        limit_s = self._limits.stall_s if link.ready else self._limits.load_s
        if link.asked_at_s is None:
            link.ask(Kind.PING)
        elif now_s - link.asked_at_s > limit_s:
            logger.warning("%s: a worker was silent for %.0f s and is killed", self._name, now_s - link.asked_at_s)
            self.kill()
            link.abort()
            link.connection_lost(None)

    def _bury(self, link: Link, now_s: float) -> None:
        """Free the place of a worker whose socket is closed, once its process has ended; by force if it must be."""
        self._lost_at_s = self._lost_at_s or now_s
        code = self._process.returncode if self._process is not None else None
        if self._process is not None and code is None:
            if now_s - self._lost_at_s > self._limits.end_s:
                self.kill()
            return
        self.link = self._process = self._lost_at_s = None
        if link.failure is not None:
            self._start_at_s = math.inf
            self._answer_for_it(True)
            return
        steady = link.ready and now_s - self._started_at_s >= STEADY_S
        in_a_row = not (link.served or steady)
        self._count_death(now_s, f"status {code}", in_a_row=in_a_row)

    def _count_death(self, now_s: float, why: str, *, in_a_row: bool) -> None:
        self._deaths = self._deaths + 1 if in_a_row else 1
        if self._deaths <= RESTARTS_MAX:
            pause_s = self._limits.backoff_s * 2 ** (self._deaths - 1)
        else:
            self.down = EngineDownError(f"{self._name}: a worker died {self._deaths} times in a row, last with {why}")
            pause_s = self._limits.retry_s
            self._answer_for_it(True)
        self._start_at_s = now_s + pause_s
        level = logging.WARNING if self.down is None else logging.ERROR
        logger.log(level, "%s: a worker ended with %s; the next starts in %.1f s", self._name, why, pause_s)

    def _answer_for_it(self, yes: bool) -> None:
        """Tell those who connect that it is down and why; or leave them to the worker again."""
        if self._listener is None or self._listener.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        if yes:
            loop.add_reader(self._listener, self._tell_down, self._listener)

    def _tell_down(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            asking, _ = listener.accept()
            with asking:
                if self.down is not None:
                    asking.sendall(pack(0, Kind.FAILED, {"code": self.down.code, "message": str(self.down)}))


async def _start_child(stdin: int, shared: Sequence[int]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "media_server.engines.workers.child", *map(str, shared)),
        stdin=stdin,
        stdout=2,  # what a library prints belongs beside the log
        env={**os.environ, "PYTHONPATH": _python_path(), "OMP_NUM_THREADS": "1"},
        pass_fds=tuple(shared),
    )


def _python_path() -> str:
    """Return the path by which the child finds this package, however we found it."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
