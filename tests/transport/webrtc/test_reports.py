"""What two ends tell each other of the packets between them: the reports (RTCP), and the packets' own clock.

The sockets are real, aiortc is the far end, and the clock stands still from the moment that the call stands until a
test moves it: each report, each beat and each stall comes when it is asked for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pytest
from aiortc.rtp import RtcpPacket, RtcpReceiverInfo, RtcpRrPacket, RtcpSenderInfo, RtcpSrPacket, RtpPacket

from media_server.audio.chunk import Pcm
from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.transport.webrtc.aiortc_private import shape
from media_server.transport.webrtc.pacing import TICK_S
from media_server.transport.webrtc.peer import WebRtcPeer
from tests.transport.webrtc.far_end import CONFIG, FarEnd, calling

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(30)]

Result = TypeVar("Result")

LIMIT_S = 10.0
"""For each wait: what pytest-timeout raises may land in another task than the test's and be lost there."""

BEAT_S = 0.02
TURNS = 5
"""Of the loop, until what is due has been done."""

REPORT_S = 1.5
"""The longest that aiortc waits between two reports; then at least 0.5 s to the next."""

SOURCE, OTHER_SOURCE = 0x1111, 0x2222
PATIENT = CONFIG.model_copy(update={"gone_after_s": 60})


class HeldLoop(asyncio.SelectorEventLoop):
    """A loop with real sockets whose clock stands still, once held, until it is moved."""

    _held_s: float | None = None

    def time(self) -> float:
        """Return the loop's time in seconds."""
        return super().time() if self._held_s is None else self._held_s

    def hold(self) -> None:
        """Stop the clock."""
        self._held_s = self.time()

    def advance(self, seconds: float) -> None:
        """Move the clock that was stopped."""
        assert self._held_s is not None
        self._held_s += seconds


class Call:
    """A call that stands, and on which the clock is stopped.

    Attributes:
        playout: what we say.
        running: our end.
        reports: what we reported to the far end, report by report, by source.
        heard: the packets that the far end got from us, and at which loop time.
        told: the shares that the far end reported to us as lost, in 256ths.
    """

    def __init__(
        self, loop: HeldLoop, far: FarEnd, peer: WebRtcPeer, playout: Playout, running: asyncio.Task[None]
    ) -> None:
        self.loop = loop
        self.peer: Any = peer
        self.playout = playout
        self.running = running
        self.reports: asyncio.Queue[dict[int, RtcpReceiverInfo]] = asyncio.Queue()
        self.heard: list[tuple[float, RtpPacket]] = []
        self.told: list[int] = []
        self._far: Any = far.transceiver
        self._n_sent = 0
        dtls: Any = self._far.sender.transport
        receiver: Any = self._far.receiver
        handle_rtcp, handle_rtp, send_rtcp = dtls._handle_rtcp_data, receiver._handle_rtp_packet, receiver._send_rtcp

        async def look_at_rtcp(data: bytes) -> None:
            for packet in RtcpPacket.parse(data):
                if isinstance(packet, RtcpRrPacket):
                    self.reports.put_nowait({report.ssrc: report for report in packet.reports})
            await handle_rtcp(data)

        async def look_at_rtp(packet: RtpPacket, arrival_time_ms: int) -> None:
            self.heard.append((loop.time(), packet))
            await handle_rtp(packet, arrival_time_ms)

        async def look_at_told(packet: RtcpRrPacket) -> None:
            self.told += [report.fraction_lost for report in packet.reports]
            await send_rtcp(packet)

        dtls._handle_rtcp_data, receiver._handle_rtp_packet = look_at_rtcp, look_at_rtp
        receiver._send_rtcp = look_at_told

    async def send(self, numbers: Iterable[int], *, source: int = SOURCE, first_timestamp: int = 0) -> None:
        """Have the far end send packets of these numbers, in this order, and wait until we have them."""
        for number in numbers:
            packet = RtpPacket(
                payload_type=0,
                sequence_number=number % (1 << 16),
                timestamp=(first_timestamp + number * 160) % (1 << 32),
                ssrc=source,
                payload=b"\xff" * 160,
            )
            await self._far.sender.transport._send_rtp(packet.serialize())
            self._n_sent += 1
        await until(lambda: self.peer.counts.received == self._n_sent)

    def expect(self, n_packets: int) -> None:
        """Count packets that came to us in another way."""
        self._n_sent += n_packets

    async def tell(self, packet: RtcpRrPacket | RtcpSrPacket) -> None:
        """Have the far end send a report of our making."""
        await self._far.sender.transport._send_rtp(bytes(packet))

    async def report(self) -> dict[int, RtcpReceiverInfo]:
        """Return our next report, by source."""
        self.loop.advance(REPORT_S)
        await until(lambda: not self.reports.empty())
        return self.reports.get_nowait()

    async def be_told(self) -> None:
        """Wait for the far end's next report."""
        n_told = len(self.told)
        self.loop.advance(REPORT_S)
        await until(lambda: len(self.told) > n_told)

    async def beats(self, n_beats: int, *, arrive: bool = True) -> None:
        """Let so many packets go out, each when it is due, and wait until they have arrived, if they do."""
        sender = self.peer._sender
        for _ in range(n_beats):
            before = sender._sequence_number
            while sender._sequence_number == before:
                assert not self.running.done()
                self.loop.advance(TICK_S)
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            if arrive:
                await until(lambda: (self.heard[-1][1].sequence_number + 1) % (1 << 16) == sender._sequence_number)


async def until(happened: Callable[[], bool]) -> None:
    """Let the loop go on until something has happened of which nobody tells.

    Raises:
        TimeoutError: it has not; not the loop's clock says so, for that stands still.
    """
    limit_s = time.monotonic() + LIMIT_S
    while not happened():
        if time.monotonic() > limit_s:
            raise TimeoutError("what was waited for did not happen")
        await asyncio.sleep(0)


@asynccontextmanager
async def held_call(codec: str) -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HeldLoop)
    far = FarEnd(codec=codec)
    playout = Playout()
    async with calling(far, [], PATIENT) as peer:
        running = asyncio.create_task(peer.run(LiveQueue(10_000), playout))
        try:
            call = Call(loop, far, peer, playout, running)
            await until(lambda: far.opened.is_set() and bool(call.heard))
            loop.hold()
            yield call
        finally:
            running.cancel()
            await asyncio.wait([running])


def run_held(scene: Callable[[Call], Awaitable[Result]], codec: str = "pcmu") -> Result:
    """Run a scene of one call, and return its result."""

    async def main() -> Result:
        async with held_call(codec) as call:
            return await scene(call)

    with asyncio.Runner(loop_factory=HeldLoop) as runner:
        return runner.run(main())


# --- what we report of what we got -----------------------------------------------------------------------------------


def test_lost_packets_are_reported_as_a_share_since_the_last_report_and_as_a_sum() -> None:
    async def scene(call: Call) -> list[RtcpReceiverInfo]:
        reports = []
        for numbers in ([0, 1, 2, 4, 5, 7, 8, 9], range(10, 20), [20, 22, 23]):
            await call.send(numbers)
            reports.append((await call.report())[SOURCE])
        return reports

    reports = run_held(scene)

    # RFC 3550 section 6.4.1, in 256ths: 2 of 10, 0 of 10, 1 of 4.
    assert [report.fraction_lost for report in reports] == [51, 0, 64]
    assert [report.packets_lost for report in reports] == [2, 2, 3]
    assert [report.highest_sequence for report in reports] == [9, 19, 23]


def test_a_packet_that_was_read_before_the_shortcut_stood_is_heard_and_reported_like_any_other() -> None:
    async def scene(call: Call) -> tuple[int, RtcpReceiverInfo]:
        early = RtpPacket(payload_type=0, sequence_number=0, timestamp=0, ssrc=SOURCE, payload=b"\xff" * 160)
        await call.peer._receiver._handle_rtp_packet(early, arrival_time_ms=0)
        call.expect(1)
        await call.send([1, 3])
        return call.peer.counts.received, (await call.report())[SOURCE]

    received, report = run_held(scene)

    assert received == 3
    assert (report.fraction_lost, report.highest_sequence) == (64, 3)  # 1 of 4


def test_packets_that_come_in_another_order_are_not_reported_as_lost() -> None:
    async def scene(call: Call) -> RtcpReceiverInfo:
        await call.send([0, 1, 3, 2, 4, 7, 6, 5])
        return (await call.report())[SOURCE]

    report = run_held(scene)

    assert (report.fraction_lost, report.packets_lost, report.highest_sequence) == (0, 0, 7)


def test_a_packet_that_comes_after_it_was_reported_lost_is_taken_back_from_the_sum() -> None:
    async def scene(call: Call) -> list[RtcpReceiverInfo]:
        reports = []
        for numbers in ([0, 1, 3], [2, 4]):
            await call.send(numbers)
            reports.append((await call.report())[SOURCE])
        return reports

    reports = run_held(scene)

    assert [(report.fraction_lost, report.packets_lost) for report in reports] == [(64, 1), (0, 0)]
    assert [report.highest_sequence for report in reports] == [3, 4]


def test_loss_is_counted_through_a_wrap_of_the_sequence_numbers_whatever_the_order() -> None:
    async def scene(call: Call) -> RtcpReceiverInfo:
        await call.send([65_530, 65_531, 65_533, 65_534, 65_536, 65_535, 65_537, 65_539])
        return (await call.report())[SOURCE]

    report = run_held(scene)

    assert (report.fraction_lost, report.packets_lost) == (51, 2)  # 2 of 10


def test_the_highest_sequence_number_that_is_reported_counts_the_wraps() -> None:
    async def scene(call: Call) -> list[RtcpReceiverInfo]:
        reports = []
        for numbers in ([65_534, 65_535], [65_536, 65_537, 65_538]):
            await call.send(numbers)
            reports.append((await call.report())[SOURCE])
        return reports

    reports = run_held(scene)

    # RFC 3550 section 6.4.1: the upper 16 bits of the field.
    assert [report.highest_sequence for report in reports] == [65_535, 65_538]


def test_a_wrap_of_the_timestamps_is_not_reported_as_jitter() -> None:
    async def scene(call: Call) -> RtcpReceiverInfo:
        await call.send(range(6), first_timestamp=(1 << 32) - 3 * 160)
        return (await call.report())[SOURCE]

    report = run_held(scene)

    assert report.jitter < 1 << 24  # half an hour; the wrap taken for time is 1 << 28


def test_after_a_change_of_source_the_new_one_is_reported_from_its_own_first_packet() -> None:
    async def scene(call: Call) -> tuple[RtcpReceiverInfo, dict[int, RtcpReceiverInfo], dict[int, RtcpReceiverInfo]]:
        await call.send([100, 102, 103, 104])
        before = await call.report()
        await call.send([7_000, 7_001, 7_003, 7_004], source=OTHER_SOURCE)
        return before[SOURCE], await call.report(), await call.report()

    before, after, later = run_held(scene)

    assert (before.fraction_lost, before.packets_lost, before.highest_sequence) == (51, 1, 104)
    assert list(after) == [OTHER_SOURCE]
    new = after[OTHER_SOURCE]
    assert (new.fraction_lost, new.packets_lost, new.highest_sequence) == (51, 1, 7_004)  # 1 of 5
    assert later == {}  # nothing was heard since


# --- what the far end reports of what it got -------------------------------------------------------------------------


def chord(seconds: float) -> Pcm:
    """Return two sines at 24 kHz."""
    at_s = np.arange(round(24_000 * seconds)) / 24_000
    sound = 4_000 * np.sin(2 * np.pi * 220 * at_s) + 2_000 * np.sin(2 * np.pi * 330 * at_s)
    pcm: Pcm = sound.astype(np.int16)
    return pcm


def has_copies(packet: RtpPacket) -> bool:
    """Return whether a packet is of the encoder that makes copies: RFC 6716 section 3.1, from 16 on it is CELT."""
    return packet.payload[0] >> 3 < 16


def told(source: int, fraction_lost: int) -> RtcpReceiverInfo:
    """Return a report on a source."""
    return RtcpReceiverInfo(source, fraction_lost, packets_lost=9, highest_sequence=99, jitter=0, lsr=0, dlsr=0)


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(lambda reports: RtcpRrPacket(ssrc=SOURCE, reports=reports), id="receiver"),
        pytest.param(lambda reports: RtcpSrPacket(SOURCE, RtcpSenderInfo(0, 0, 0, 0), reports), id="sender"),
    ],
)
def test_the_share_that_is_lost_is_taken_from_the_last_report_on_our_source(
    report: Callable[[list[RtcpReceiverInfo]], RtcpRrPacket | RtcpSrPacket],
) -> None:
    async def scene(call: Call) -> list[float]:
        ours = call.peer._sender._ssrc
        shares = []
        for fraction_lost in (64, 128, 0):
            await call.tell(report([told(OTHER_SOURCE, 255), told(ours, fraction_lost), told(SOURCE, 255)]))
            await call.tell(report([told(OTHER_SOURCE, 255)]))
            await call.beats(1)
            shares.append(call.peer._sender.lost_share)
        return shares

    assert run_held(scene) == [0.25, 0.5, 0]


def test_copies_are_sent_from_the_far_ends_report_of_loss_to_ten_seconds_after_the_last_one() -> None:
    async def scene(call: Call) -> tuple[list[float], list[list[bool]]]:
        lossy = False
        n_datagrams = 0

        def arrival_s(now_s: float) -> float | None:
            nonlocal n_datagrams
            n_datagrams += 1
            return None if lossy and n_datagrams % 2 else now_s

        shares: list[float] = []
        copies: list[list[bool]] = []

        async def look() -> None:
            shares.append(call.peer._sender.lost_share)
            n_heard = len(call.heard)
            await call.beats(10)
            copies.append([has_copies(packet) for _, packet in call.heard[n_heard:]])

        call.playout.take_floor("reply").write(chord(60))
        shape(call.peer._pc, arrival_s, lambda now_s: now_s)
        await call.beats(10)
        await call.be_told()
        await look()
        lossy = True
        await call.beats(10, arrive=False)
        lossy = False
        await call.beats(1)  # which lets the far end know that the one before was lost
        await call.be_told()
        await until(lambda: call.peer._sender.lost_share > 0)
        assert call.peer._sender.lost_share == call.told[-1] / 256
        await look()
        while call.peer._sender.lost_share > 0:
            await call.beats(1)
        await call.beats(round(9.5 / BEAT_S))
        await look()
        await call.beats(round(0.5 / BEAT_S))
        await look()
        return shares, copies

    shares, copies = run_held(scene, "opus")

    assert shares[0] == 0
    assert 0.2 < shares[1] < 0.5  # 5 of some 20
    assert shares[2:] == [0, 0]
    assert not any(copies[0])
    assert all(copies[1][2:])  # the two encoders change within two packets
    assert all(copies[2])
    assert not any(copies[3][2:])


# --- the clock of what we send ---------------------------------------------------------------------------------------


def test_timestamps_run_on_through_a_stall_and_through_silence_and_no_number_is_left_out() -> None:
    async def scene(call: Call) -> list[tuple[float, RtpPacket]]:
        await call.beats(10)
        n_heard = len(call.heard)
        call.playout.take_floor("one").write(chord(0.4))
        await call.beats(10)
        call.loop.advance(0.5)  # while speaking
        await call.beats(25)
        call.loop.advance(0.3)  # while silent
        await call.beats(10)
        call.playout.take_floor("two").write(chord(0.1))
        await call.beats(10)
        return call.heard[n_heard:]

    heard = run_held(scene, "opus")
    first_s, first = heard[0]
    steps = [(b.timestamp - a.timestamp) % (1 << 32) for (_, a), (_, b) in pairwise(heard)]
    off_s = [(packet.timestamp - first.timestamp) % (1 << 32) / 48_000 - (at_s - first_s) for at_s, packet in heard]

    assert {(b.sequence_number - a.sequence_number) % (1 << 16) for (_, a), (_, b) in pairwise(heard)} == {1}
    assert sum(step != 960 for step in steps) == 2
    assert {step % 960 for step in steps} == {0}
    assert max(map(abs, off_s)) < BEAT_S
    assert [packet.marker for _, packet in heard].count(1) == 2
