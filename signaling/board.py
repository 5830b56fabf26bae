"""The board: what the media processes of one server know of each other, without asking.

A small file in memory that all have mapped, with a line for each.
"""

import contextlib
import fcntl
import mmap
import os
import weakref
from array import array
from collections.abc import Generator, Sequence
from pathlib import Path

_CALLS, _READY, _WAS_READY, _BEATS, _GIVEN = range(5)
"""The places in a line; from the last on there is one for each process. Each line is written by its process alone, and
emptied by the supervisor."""

_COUNTERS = 1024
"""Of `/metrics`, that the board has room for: there are about 260."""


class Board:
    """How many calls each process has, whether it takes more, and what it has counted. Reading costs nothing.

    What was counted belongs to a place, and goes on with the next process there.
    """

    def __init__(self, path: Path, n: int) -> None:
        """Open the board of `n` processes; it is made if it is not there."""
        counted, lines = array("d", [0.0]).itemsize * _COUNTERS * n, array("I", [0]).itemsize * (_GIVEN + n) * n
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # stays open: a lock that is there cannot fail
        weakref.finalize(self, os.close, self._file)
        os.truncate(self._file, counted + lines)
        shared = memoryview(mmap.mmap(self._file, counted + lines))
        self.n = n
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

    def beat(self, index: int) -> None:
        """Give a sign of life of a process."""
        place = index * self._width + _BEATS
        self._lines[place] = (self._lines[place] + 1) % (1 << 32)

    def beats(self, index: int) -> int:
        """Return how many signs of life a process has given; it wraps at 2^32."""
        return self._lines[index * self._width + _BEATS]

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
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
