"""Sockets are bound where they are wanted, and callers are told what they can reach."""

import resource
import socket

import pytest

from media_server.errors import ServerFullError
from media_server.transport.webrtc.addresses import announced_for, open_socket


def free_range() -> range:
    """Return three ports of which only the middle one is known to be free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return range(port - 1, port + 2)


async def test_each_socket_takes_a_port_of_the_range_until_there_is_none() -> None:
    ports = free_range()
    opened: list[socket.socket] = []

    async def open_more() -> None:
        while True:
            opened.append(await open_socket("127.0.0.1", ports))

    with pytest.raises(ServerFullError, match=f"{ports[0]} to {ports[-1]} are configured"):
        await open_more()
    taken = {each.getsockname()[1] for each in opened}
    for each in opened:
        each.close()

    assert ports[1] in taken
    assert taken <= set(ports)


async def test_without_a_range_the_system_chooses() -> None:
    with await open_socket("127.0.0.1") as one, await open_socket("127.0.0.1") as other:
        assert 0 < one.getsockname()[1] != other.getsockname()[1] > 0


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        await open_socket("192.0.2.7")


async def test_without_a_descriptor_there_is_no_room_for_a_call() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ServerFullError, match="no socket is to be had for media: Too many open files"):
            await open_socket("127.0.0.1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_announced_addresses_stand_for_bound_ones_of_their_family() -> None:
    announce = ["192.0.2.7", "192.0.2.8"]

    assert announced_for("10.0.0.5", announce) == ["192.0.2.7", "192.0.2.8"]
    assert announced_for("fd00::5", announce) == ["fd00::5"]
    assert announced_for("10.0.0.5", []) == ["10.0.0.5"]
