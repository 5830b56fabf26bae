"""How long does it take from the offer to the first packet back?"""

from media_server.caller.client import CallClient
from tests.bench.table import row, show
from tests.servers import server

CALLS = 50


async def run() -> None:
    """Call fifty times in a row on loopback."""
    answers, connections, channels, packets = [], [], [], []
    async with server() as url:
        for _ in range(CALLS):
            async with CallClient(url) as client:
                await client.wait_for(lambda event: event["type"] == "session.created", 10)
                while client.setup.first_packet_ms is None:
                    await client.wait_for_more(client.n_received)
                setup = client.setup
                answers.append(setup.answer_ms or 0.0)
                connections.append(setup.connected_ms or 0.0)
                channels.append(setup.channel_ms or 0.0)
                packets.append(setup.first_packet_ms or 0.0)
    show(
        "connection",
        f"Connection on loopback, {CALLS} calls in a row, ms from the offer",
        [
            row("answer", answers),
            row("connected", connections),
            row("data channel open", channels),
            row("first packet back", packets, "p95 <= 250"),
        ],
    )
