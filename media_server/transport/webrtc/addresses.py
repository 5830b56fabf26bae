"""Where media binds, and what callers are told of it.

A socket is bound to an address of this machine, on any port or on one of a range. Behind a NAT that maps an announced
address to this machine, callers are told the announced address and the same port.
"""

import asyncio
import errno
import ipaddress
import itertools
import logging
import random
import socket
from collections.abc import Sequence

from media_server.errors import ServerFullError

logger = logging.getLogger(__name__)

ANY_PORT = range(1)
"""Port 0: the system chooses."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""No socket is to be had now, wherever it would be bound."""

_RECEIVE_BUFFER_BYTES = 262_144  # as aioice has it (aioice/turn.py, UDP_SOCKET_BUFFER_SIZE)
_RETRY_AFTER_S = 5  # calls are short: a port is free soon. Callers are told `server.retry_after_s` instead


async def open_socket(address: str, ports: range = ANY_PORT) -> socket.socket:
    """Return a UDP socket bound to an address of ours, on a free port of `ports`.

    Raises:
        ServerFullError: there is no free one, or no socket.
        OSError: the address is not ours, or the port not for us.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(address, 0, type=socket.SOCK_DGRAM)
    family, kind, _, _, (host, _, *scope) = infos[0]
    try:
        bound = socket.socket(family, kind)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        logger.warning("no socket is to be had for media: %s", error.strerror)
        message = f"no socket is to be had for media: {error.strerror}"
        raise ServerFullError(message, retry_after_s=_RETRY_AFTER_S) from error
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        # Not from the first: what still comes for a call that has just ended would go to the next one.
        first = random.randrange(len(ports))
        for port in itertools.chain(ports[first:], ports[:first]):
            try:
                bound.bind((host, port, *scope))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return bound
        logger.warning("no UDP port of %s is free for media: %s", address, _named(ports))
        raise ServerFullError(f"no UDP port is free for media: {_named(ports)}", retry_after_s=_RETRY_AFTER_S)
    except BaseException:
        bound.close()
        raise


def announced_for(address: str, announce: Sequence[str]) -> list[str]:
    """Return the addresses that callers are told in place of a bound one: those of its family, else itself."""
    version = ipaddress.ip_address(address).version
    return [each for each in announce if ipaddress.ip_address(each).version == version] or [address]


def _named(ports: range) -> str:
    return "any is wanted" if ports == ANY_PORT else f"{ports[0]} to {ports[-1]} are configured"
