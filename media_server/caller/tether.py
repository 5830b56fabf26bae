"""`python -m media_server.caller.tether MODULE ARG ...`: runs a module as `python -m` does, until its starter ends.

Its standard input is a pipe whose other end the starter alone holds. However the starter ends, `kill -9` included, the
pipe ends with it, and then this process gets SIGTERM. The starter's end is `start_tethered` and `end_tethered`.
"""

import asyncio
import contextlib
import os
import runpy
import signal
import sys
import threading
from typing import IO


async def start_tethered(*arguments: str, output: IO[bytes] | None = None) -> asyncio.subprocess.Process:
    """Start a module with its arguments as a process that ends with us. `output`: for what it prints; None: as ours.

    It gets a session of its own: Ctrl-C reaches us alone, and we decide when it ends.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "media_server.caller.tether", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


async def end_tethered(process: asyncio.subprocess.Process, limit_s: float) -> bool:
    """End a process of `start_tethered`; return False if after `limit_s` it, and all in its session, was killed.

    Cancelled: they are killed at once.
    """
    if process.returncode is not None:
        return True
    process.send_signal(signal.SIGTERM)
    try:
        # Not asyncio.timeout: see engines/workers/pool.py, `_end_all`.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), limit_s)
    finally:
        in_time = process.returncode is not None
        if not in_time:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return in_time


def main() -> None:
    """Run the module that the arguments name."""
    # A thread, and a read that takes no lock: an interpreter that ends need not wait for it.
    threading.Thread(target=_end_with_starter, name="tether", daemon=True).start()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
