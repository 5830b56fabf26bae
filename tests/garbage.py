"""What is freed without the garbage collector."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Generator[None, None, None]:
    """Let only what nobody knows any more be freed, while the block lasts."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
