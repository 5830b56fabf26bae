"""`python -m media_server.caller.tether MODULE ARG ...`: runs a module as `python -m` does, until its starter ends.

Its standard input is a pipe whose other end the starter alone holds. However the starter ends, `kill -9` included, the
pipe ends with it, and then this process gets SIGTERM.
"""

import os
import runpy
import signal
import sys
import threading


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
