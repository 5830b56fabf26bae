"""The event loop that the commands run on."""

import asyncio

try:
    from uvloop import new_event_loop as _new_event_loop
except ImportError:  # uvloop does not exist for Windows
    from asyncio import new_event_loop as _new_event_loop  # type: ignore[assignment]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop: uvloop's where there is one, which takes about a quarter off the loop's time."""
    return _new_event_loop()
