"""The embedded agent's reply to a conversation, at once."""

from media_server.conversation import Item
from media_server.engines.scenario import Scenario
from media_server.engines.scenario_dialogue import Dialogue


def reply_to(scenario: Scenario, items: tuple[Item, ...]) -> str:
    """Return what the agent says now."""
    dialogue = Dialogue(scenario)
    for item in items:
        dialogue.take(item)
    return dialogue.reply()
