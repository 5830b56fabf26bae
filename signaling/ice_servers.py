"""STUN and TURN servers for callers, with passwords that hold for a while.

GET  /v1/realtime/ice_servers   -> {"ice_servers": [{"urls", "username", "credential"}], "ttl_s"}

A TURN server that shares a secret with us (coturn: `use-auth-secret`) takes a password if it is the HMAC of its user
name, and the name begins with a time that has not come yet (draft-uberti-behave-turn-rest-00). Nothing is kept.
"""

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from media_server.config import WebRtcConfig
from signaling.house import HOUSE

ICE_SERVERS = "/v1/realtime/ice_servers"


def add_routes(app: web.Application) -> None:
    """Add the route."""
    app.router.add_get(ICE_SERVERS, _tell)


def ice_servers(config: WebRtcConfig, *, now_s: float, caller_id: str) -> list[dict[str, Any]]:
    """Return the servers that are configured, as RTCPeerConnection wants them.

    Args:
        config: names the servers.
        now_s: since 1970, as the TURN server's clock has it.
        caller_id: tells callers apart in the TURN server's log.
    """
    servers: list[dict[str, Any]] = []
    if config.stun_url:
        servers.append({"urls": [config.stun_url]})
    if config.turn_urls:
        username = f"{int(now_s) + config.turn_ttl_s}:{caller_id}"
        digest = hmac.digest(config.turn_secret.encode(), username.encode(), hashlib.sha1)
        credential = base64.b64encode(digest).decode()
        servers.append({"urls": list(config.turn_urls), "username": username, "credential": credential})
    return servers


async def _tell(request: web.Request) -> web.Response:
    config = request.app[HOUSE].config.webrtc
    servers = ice_servers(config, now_s=datetime.now(UTC).timestamp(), caller_id=secrets.token_hex(8))
    answer = {"ice_servers": servers, "ttl_s": config.turn_ttl_s}
    return web.json_response(answer, headers={"Cache-Control": "no-store"})
