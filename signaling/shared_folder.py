"""The folder of a server with several processes: their sockets, their board, what their model workers count.

It is locked as long as its supervisor lives, and before anything is in it. So one that has a board and no lock is that
of a supervisor that was killed, and the next one removes it.
"""

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

from media_server.errors import ConfigError

BOARD = "board"
"""The name of the file that all processes have mapped; see `board.Board`."""

FOLDER_MAX_BYTES = 64 + len("/parley-xxxxxxxx")
"""The path of a Unix socket has at most 103 bytes (`sun_path`: 104 with its end on macOS, 108 on Linux); names in the
folder have up to 15."""

_WHO_MAY = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO
_OURS = re.compile(r"parley-[a-z0-9_]{8}")  # as `tempfile` names them
_INSIDE = re.compile(rf"{BOARD}|([a-z]+-)?\d+\.sock|[a-z]+\.streams")


@contextlib.contextmanager
def shared_folder() -> Generator[Path, None, None]:
    """Give a folder for what the processes share, which none but our own user can look into.

    Those that supervisors of our user left when they were killed are removed first.

    Raises:
        ConfigError: the names in it would be too long for sockets.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    with contextlib.ExitStack() as last, tempfile.TemporaryDirectory(prefix="parley-") as name:
        folder = Path(name)
        _check_room_for_sockets(folder)
        directory = os.open(folder, os.O_RDONLY)
        last.callback(os.close, directory)
        # Who cleans up old temporary files leaves a locked folder alone (https://systemd.io/TEMPORARY_DIRECTORIES).
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield folder


def _check_room_for_sockets(folder: Path) -> None:
    if len(os.fsencode(folder)) > FOLDER_MAX_BYTES:
        where, most = str(folder.parent), FOLDER_MAX_BYTES - len(os.fsencode(folder.name)) - 1
        raise ConfigError(f"TMPDIR: found {where[:80]!r}, wanted one whose name has at most {most} bytes, for sockets")


def remove_abandoned(parent: Path) -> None:
    """Remove the folders in `parent` that supervisors of our own user left when they were killed.

    What cannot be removed stays. Their processes do not mind: those that are still ending take no more calls, and
    what they use of the folder is open.
    """
    with contextlib.suppress(OSError):  # a folder that can be written to, but not looked into
        for name in filter(_OURS.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):  # no folder or another user's, or it is locked: somebody lives there
                _remove_if_abandoned(parent / name)


def _remove_if_abandoned(folder: Path) -> None:
    # Where others may write, a name may become a link at any time: all goes by the descriptor but for the last step,
    # which removes no link, and nothing that has something in it.
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        about = os.fstat(directory)
        if about.st_uid != os.geteuid() or about.st_mode & _WHO_MAY != stat.S_IRWXU:
            return
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        inside = os.listdir(directory)
        if BOARD in inside and all(map(_INSIDE.fullmatch, inside)):
            inside.remove(BOARD)
            for name in (*inside, BOARD):  # the board last: whoever is killed here leaves a folder that is still known
                os.unlink(name, dir_fd=directory)
            folder.rmdir()
    finally:
        os.close(directory)
