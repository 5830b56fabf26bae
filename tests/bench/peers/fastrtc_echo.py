"""An echo made with FastRTC, as its own guide makes one: PYTHON fastrtc_echo.py PORT, in an environment that has it.

At its default rates: asked for 16 kHz it hands over 60 ms at a time. Without VAD: FastRTC's stands in `ReplyOnPause`,
which is no echo.
"""

# FastRTC is not in the environment in which types are checked.
# mypy: disable-error-code="import-not-found, misc"

import asyncio
import sys
from typing import Any

import aioice.ice
import uvicorn
from fastapi import FastAPI
from fastrtc import AsyncStreamHandler, Stream

MAX_CALLS = 400


class Echo(AsyncStreamHandler):
    """Says what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def receive(self, frame: tuple[int, Any]) -> None:
        """Take a frame: its rate and its samples."""
        await self._heard.put(frame)

    async def emit(self) -> tuple[int, Any]:
        """Return the next frame, waiting for one."""
        return await self._heard.get()

    def copy(self) -> "Echo":
        """Return one for the next call."""
        return Echo()


def main() -> None:
    """Serve on loopback."""
    # aioice never offers 127.0.0.1, and the callers offer nothing else.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    stream = Stream(
        Echo(),
        modality="audio",
        concurrency_limit=MAX_CALLS,
        server_rtc_configuration={"iceServers": []},
        verbose=False,
    )
    app = FastAPI()
    stream.mount(app)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
