"""The OpenAI Realtime API in its general-availability form, as spoken on a call's data channel.

    realtime_encode     events of the house -> messages
    realtime_decode     messages -> commands of the house
    realtime_session    the session object, both ways, and how changes are merged
    realtime_items      items of the conversation, both ways
    realtime_fields     checked reading of what clients send

What the API has no word for is told in messages whose type begins with `parley.`; stock clients ignore them.
"""

from media_server.events import Command, Event
from media_server.protocol.realtime_decode import read_command
from media_server.protocol.realtime_encode import write_event


class RealtimeWire:
    """Turns events into JSON messages and JSON messages into commands. Keeps nothing between two of them."""

    def encode(self, event: Event) -> tuple[str, ...]:
        """Return the messages that tell of `event`, in order, each with an `event_id` of its own."""
        return write_event(event)

    def decode(self, text: str) -> Command:
        """Return what the client asks.

        Raises:
            ClientError: the message is malformed, too large, or asks for what this server has not.
        """
        return read_command(text)
