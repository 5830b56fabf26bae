import asyncio
from contextlib import aclosing

from aiortc import RTCDataChannel, RTCDataChannelParameters

from media_server.events import (
    ClearSound,
    Command,
    LevelsMeasured,
    PlayoutStarted,
    ReplyTextGrew,
    TranscriptGrew,
    TranscriptGuessed,
    WordsSpoken,
)
from media_server.transport.webrtc.data_channel import DataChannel
from tests.transport.webrtc.far_end import PlainWire


class FakeSctp:
    """Stands where aiosctp's SCTP transport does: what is sent stays here, `stuck_bytes` more are waiting."""

    def __init__(self, state: str = "open") -> None:
        self.sent: list[str] = []
        self.channel = RTCDataChannel(self, RTCDataChannelParameters(label="oai-events", id=1), send_open=False)  # type: ignore[arg-type]
        self.channel._setReadyState(state)

    def _data_channel_send(self, channel: RTCDataChannel, data: str) -> None:
        self.sent.append(data)

    def _data_channel_close(self, channel: RTCDataChannel) -> None:
        channel._setReadyState("closed")

    def receive(self, message: str | bytes) -> None:
        self.channel.emit("message", message)

    def fill(self, n_bytes: int = 65_537) -> None:
        self.channel._addBufferedAmount(n_bytes)

    def drain(self, n_bytes: int = 65_537) -> None:
        self.channel._addBufferedAmount(-n_bytes)


def opened(state: str = "open") -> tuple[FakeSctp, DataChannel]:
    sctp = FakeSctp(state)
    return sctp, DataChannel(sctp.channel, PlainWire())


def reply_text(delta: str, item_id: str = "i") -> ReplyTextGrew:
    return ReplyTextGrew("r", item_id, 0, delta, "audio")


class FullWire(PlainWire):
    """Shows everything."""

    def encode(self, event: object) -> tuple[str, ...]:
        return (str(event),)


async def read(channel: DataChannel) -> list[Command]:
    async with aclosing(channel.commands()) as commands:
        return [command async for command in commands]


async def test_commands_are_yielded_in_order_until_the_channel_closes() -> None:
    sctp, channel = opened()
    reader = asyncio.ensure_future(read(channel))
    await asyncio.sleep(0)

    sctp.receive("clear 1")
    sctp.receive("clear 2")
    sctp.channel.close()

    assert await reader == [ClearSound(event_id="1"), ClearSound(event_id="2")]


async def test_a_command_that_cannot_be_read_is_answered_by_the_channel_itself() -> None:
    sctp, _ = opened()

    sctp.receive("sing 7")
    sctp.receive(b"clear 8")

    assert sctp.sent == ["error unknown_word 7", "error invalid_request None"]


async def test_the_65th_waiting_command_is_refused() -> None:
    sctp, channel = opened()

    for n in range(65):
        sctp.receive(f"clear {n}")
    sctp.channel.close()

    assert sctp.sent == ["error too_many_commands 64"]
    assert len(await read(channel)) == 64


async def test_what_is_sent_before_the_channel_opens_goes_out_then_in_order() -> None:
    sctp, channel = opened("connecting")

    channel.send(PlayoutStarted("r"))
    channel.send(TranscriptGrew("i", "hello"))
    assert sctp.sent == []
    sctp.channel._setReadyState("open")

    assert sctp.sent == ["PlayoutStarted", "text hello"]


async def test_while_the_peer_is_slow_deltas_grow_together_and_the_newest_of_the_rest_stays() -> None:
    sctp = FakeSctp()
    channel = DataChannel(sctp.channel, FullWire())
    sctp.fill()

    channel.send(reply_text("one "))
    channel.send(LevelsMeasured(-20, -30, True, False))
    channel.send(WordsSpoken("r", "i", 3))
    channel.send(TranscriptGuessed("c", "", "a"))
    channel.send(PlayoutStarted("r"))
    channel.send(reply_text("other", "j"))
    channel.send(reply_text("two"))
    channel.send(TranscriptGuessed("c", "", "b"))
    channel.send(WordsSpoken("r", "i", 7))
    channel.send(LevelsMeasured(-21, -31, True, False))
    assert sctp.sent == []
    sctp.drain()

    assert sctp.sent == [
        str(reply_text("one two")),
        str(PlayoutStarted("r")),
        str(reply_text("other", "j")),
        str(TranscriptGuessed("c", "", "b")),
        str(WordsSpoken("r", "i", 7)),
        str(LevelsMeasured(-21, -31, True, False)),
    ]


async def test_no_event_overtakes_those_that_wait() -> None:
    sctp, channel = opened()
    sctp.fill()
    channel.send(PlayoutStarted("r"))
    sctp.drain(5_000)

    channel.send(TranscriptGrew("i", "late"))
    assert sctp.sent == []
    sctp.drain(60_537)

    assert sctp.sent == ["PlayoutStarted", "text late"]


async def test_a_peer_that_reads_nothing_is_cut_off() -> None:
    sctp, channel = opened()
    sctp.fill()

    for n in range(1_001):
        channel.send(TranscriptGrew(f"item_{n}", "x"))

    assert sctp.channel.readyState == "closed"
    assert await read(channel) == []


async def test_a_channel_that_cannot_be_closed_costs_its_sender_nothing() -> None:
    class BrokenSctp(FakeSctp):
        def _data_channel_close(self, channel: RTCDataChannel) -> None:
            raise ConnectionError("the connection was lost")

    sctp = BrokenSctp()
    channel = DataChannel(sctp.channel, PlainWire())
    sctp.fill()

    for n in range(1_001):
        channel.send(TranscriptGrew(f"item_{n}", "x"))

    assert channel.closed


async def test_closing_twice_is_closing_once() -> None:
    sctp, channel = opened()

    await channel.close()
    await channel.close()
    channel.send(PlayoutStarted("r"))

    assert sctp.channel.readyState == "closed"
    assert sctp.sent == []
