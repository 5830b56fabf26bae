"""A real TURN server for tests: coturn, on loopback."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

SECRET = "north-star"
TURNSERVER = shutil.which("turnserver")

needs_coturn = pytest.mark.skipif(TURNSERVER is None, reason="coturn is not installed (tests/system_packages.sh)")


@asynccontextmanager
async def relay(folder: Path) -> AsyncIterator[str]:
    """Run coturn on loopback; give its address and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert TURNSERVER is not None
    options = (
        f"-n --listening-ip 127.0.0.1 --relay-ip 127.0.0.1 --listening-port {port} --use-auth-secret "
        f"--static-auth-secret {SECRET} --realm parley --no-tls --no-dtls --no-cli --allow-loopback-peers "
        f"--log-file stdout --simple-log --pidfile {folder}/turn.pid --userdb {folder}/turn.db"
    )
    process = await asyncio.create_subprocess_exec(TURNSERVER, *options.split(), stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"Total General servers" not in (line := await process.stdout.readline()):
                assert line, "coturn ended at once"
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
