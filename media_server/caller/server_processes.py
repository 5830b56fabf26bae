"""What a server on this machine takes of it: processor time, memory, threads."""

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil


class ServerProcesses:
    """The processes of a server and their children; none of them may be on this machine."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._roots = [psutil.Process(pid) for pid in pids]

    def all(self) -> set[psutil.Process]:
        """Return them; one of them may have ended by the time it is looked at."""
        processes: set[psutil.Process] = set()
        for root in self._roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes |= {root, *root.children(recursive=True)}
        return processes

    def cpu_s(self) -> float | None:
        """Return what they have used."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def memory_mb(self) -> float | None:
        """Return what they hold."""
        return self._sum(lambda process: process.memory_info().rss / 1e6)

    def threads(self) -> int | None:
        """Return how many threads they have."""
        n = self._sum(lambda process: process.num_threads())
        return None if n is None else round(n)

    def _sum(self, of: Any) -> float | None:
        if not self._roots:
            return None
        total = 0.0
        for process in self.all():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += of(process)
        return total


def listening_on(url: str) -> list[int]:
    """Return the processes of this machine that listen on the address; none if it is another machine's."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        return []
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }
    processes = {_root(psutil.Process(pid)) for pid in pids}
    # A child that shares the port is counted with its parent.
    return [process.pid for process in processes if not set(process.parents()) & processes]


def _root(process: psutil.Process) -> psutil.Process:
    """Return the supervisor of one of our media processes, which holds what they share; of any other itself."""
    parent = process.parent()
    return parent if parent is not None and "--place" in process.cmdline() else process
