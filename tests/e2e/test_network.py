"""Whole calls where the network is not plain: IPv6 alone, a port range that is full, and a relay (coturn) between.

The server echoes: who hears their own tone was heard.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from media_server.audio.chunk import SPEAKING_HZ, silence
from media_server.caller.client import CallClient
from media_server.errors import PeerGoneError, ServerFullError
from signaling.app import build_app, build_house
from tests.coturn import SECRET, make_certificate, needs_coturn, relay
from tests.signaling.scripted_house import ScriptedEngines, make_config

pytestmark = pytest.mark.e2e

TONE = (8000 * np.sin(np.arange(SPEAKING_HZ // 2) * 2 * np.pi * 440 / SPEAKING_HZ)).astype(np.int16)


@asynccontextmanager
async def echo_server(host: str = "127.0.0.1", **flags: str | int) -> AsyncIterator[str]:
    knobs = {f"webrtc.{name}": value for name, value in flags.items()}
    house = build_house(make_config({"server.host": host, "call.mode": "echo", **knobs}), ScriptedEngines())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(house.manager.run()), tasks.create_task(house.pacing.run())]
        async with TestServer(build_app(house), host=host) as server:
            yield str(server.make_url("")).rstrip("/")
        for task in running:
            task.cancel()


async def hears_itself(client: CallClient) -> bool:
    await client.play(TONE)
    await client.play(silence(SPEAKING_HZ // 2))
    return client.ear.first_sound_s() is not None


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_a_call_is_heard_both_ways_over_ipv6_alone() -> None:
    async with echo_server("::1") as url, CallClient(url) as client:
        assert await hears_itself(client)


async def test_where_every_port_is_taken_the_call_is_refused_and_leaves_a_free_place() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with echo_server(port_min=port, port_max=port) as url:
            with pytest.raises(ServerFullError, match="no UDP port is free for media") as caught:
                await CallClient(url).__aenter__()
            taken.close()
            async with CallClient(url) as client:
                assert await hears_itself(client)

    assert caught.value.retry_after_s == 5


@needs_coturn
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_call_is_heard_both_ways_through_a_relay(transport: str, tmp_path: Path) -> None:
    async with relay(tmp_path) as address:
        urls = f"turn:{address}?transport={transport}"
        async with (
            echo_server(turn_urls=urls, turn_secret=SECRET) as url,
            CallClient(url, relay_only=True) as client,
        ):
            assert await hears_itself(client)
            offered = client._peer.localDescription.sdp

    assert {line.split()[7] for line in offered.splitlines() if line.startswith("a=candidate")} == {"relay"}


@needs_coturn
async def test_a_call_is_heard_both_ways_through_a_relay_that_takes_tls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # whom OpenSSL trusts, and so aioice
    async with (
        relay(tmp_path, certificate) as address,
        echo_server(turn_urls=f"turns:{address}?transport=tcp", turn_secret=SECRET) as url,
        CallClient(url, relay_only=True) as client,
    ):
        assert await hears_itself(client)
        offered = client._peer.localDescription.sdp

    assert {line.split()[7] for line in offered.splitlines() if line.startswith("a=candidate")} == {"relay"}


@needs_coturn
async def test_a_relay_with_a_certificate_that_nobody_vouches_for_is_not_used(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, make_certificate(tmp_path)) as address,
        echo_server(turn_urls=f"turns:{address}?transport=tcp", turn_secret=SECRET) as url,
    ):
        client = CallClient(url, relay_only=True, connect_timeout_s=1)
        with pytest.raises(PeerGoneError):
            await client.__aenter__()

    assert "a=candidate" not in client._peer.localDescription.sdp


@needs_coturn
async def test_a_relay_takes_no_password_made_from_another_secret(tmp_path: Path) -> None:
    async with relay(tmp_path) as address, echo_server(turn_urls=f"turn:{address}", turn_secret="south") as url:
        client = CallClient(url, relay_only=True, connect_timeout_s=1)
        with pytest.raises(PeerGoneError):
            await client.__aenter__()

    assert "a=candidate" not in client._peer.localDescription.sdp
