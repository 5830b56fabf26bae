"""How many streams each worker of a shared pool has: a small file that all who use the pool read.

Each line is written by its own worker alone, so there is no lock; reading one costs about a microsecond.
"""

import os
import struct
from pathlib import Path

_LINE = struct.Struct("@I")


class StreamCounts:
    """The streams of each worker, those of all processes together, those that wait for room included."""

    def __init__(self, path: Path) -> None:
        """Open the file; it is made if it is not there."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, index: int, streams: int) -> None:
        """Write the line of one worker."""
        os.pwrite(self._file, _LINE.pack(streams), index * _LINE.size)

    def read(self, index: int) -> int:
        """Return the line of one worker; 0: it has not written any."""
        line = os.pread(self._file, _LINE.size, index * _LINE.size)
        return int(_LINE.unpack(line)[0]) if line else 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
