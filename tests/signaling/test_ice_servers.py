"""Callers are told of STUN and TURN servers, with passwords that those servers take for a while."""

from datetime import UTC, datetime

from media_server.config import load_config
from signaling.ice_servers import ICE_SERVERS, ice_servers
from tests.signaling.scripted_house import front_door

FLAGS = {
    "webrtc.stun_url": "stun:stun.example.com",
    "webrtc.turn_urls": "turn:turn.example.com turns:turn.example.com:443?transport=tcp",
    "webrtc.turn_secret": "north star",
}


async def test_without_servers_there_are_none() -> None:
    async with front_door() as (client, _):
        response = await client.get(ICE_SERVERS)

        assert response.status == 200
        assert await response.json() == {"ice_servers": [], "ttl_s": 7200}


async def test_a_password_is_told_to_one_caller_and_the_secret_to_nobody() -> None:
    async with front_door(flags=FLAGS) as (client, _):
        first, second = await client.get(ICE_SERVERS), await client.get(ICE_SERVERS)

        one, other = (await first.json())["ice_servers"][1], (await second.json())["ice_servers"][1]
        left_s = int(one["username"].partition(":")[0]) - datetime.now(UTC).timestamp()
        assert first.headers["Cache-Control"] == "no-store"
        assert one["username"] != other["username"]
        assert one["credential"] != other["credential"]
        assert 7100 < left_s <= 7200
        assert "north star" not in await first.text()


def test_a_password_is_the_hmac_of_the_user_name() -> None:
    config = load_config({}, flags=FLAGS).config.webrtc

    servers = ice_servers(config, now_s=1_700_000_000.9, caller_id="7f3a")

    # printf 1700007200:7f3a | openssl dgst -sha1 -hmac 'north star' -binary | base64
    assert servers == [
        {"urls": ["stun:stun.example.com"]},
        {
            "urls": ["turn:turn.example.com", "turns:turn.example.com:443?transport=tcp"],
            "username": "1700007200:7f3a",
            "credential": "ucLQMvsXacKWEV8k0bdIEiHT9J0=",
        },
    ]
