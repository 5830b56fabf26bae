"""How much of a spoken order is understood end to end, and what does noise set off?"""

from tests.bench.table import show
from tests.orders import send_clips
from tests.servers import server
from tests.speech import MISSING, clips

AT_A_TIME = 3


async def run() -> None:
    """Send every order and every noise through a call of its own."""
    if not clips("barista"):
        print(f"\norders: skipped: {MISSING}")
        return
    async with server() as url:
        orders = await send_clips(url, clips("barista"), at_a_time=AT_A_TIME)
        noises = await send_clips(url, clips("negatives"), at_a_time=AT_A_TIME)
    right, labelled = sum(heard.right for heard in orders), sum(heard.labelled for heard in orders)
    minutes = sum(heard.clip.seconds for heard in noises) / 60
    show(
        "orders",
        "Orders and noises as calls through WebRTC",
        [
            {"": "slots understood", "figure": right, "of": labelled, "share": right / labelled, "target": ">= 0.80"},
            {
                "": "noises that began a turn",
                "figure": sum(heard.turns > 0 for heard in noises),
                "of": len(noises),
                "share": sum(heard.turns for heard in noises) / minutes,
                "target": "(share: turns a minute)",
            },
            {
                "": "noises that were answered",
                "figure": sum(heard.replies > 0 for heard in noises),
                "of": len(noises),
                "share": sum(heard.replies for heard in noises) / minutes,
                "target": "(share: replies a minute)",
            },
        ],
        orders=[
            {"clip": heard.clip.path.name, "said": heard.clip.text, "heard": heard.text, "right": heard.right}
            for heard in orders
        ],
        noises=[{"clip": heard.clip.path.name, "turns": heard.turns, "heard": heard.text} for heard in noises],
        minutes_of_noise=minutes,
    )
