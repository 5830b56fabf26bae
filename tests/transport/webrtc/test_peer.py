"""Real WebRTC over loopback: plain aiortc is the caller."""

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields
from typing import Any

import aioice
import numpy as np
import pytest
import uvloop
from aioice.ice import StunProtocol
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import RtpPacket

from media_server.audio.chunk import AudioChunk, Pcm, silence
from media_server.audio.jitter import JitterCounts
from media_server.audio.live_queue import LiveQueue
from media_server.audio.opus import OpusEncoder
from media_server.audio.playout import Playout
from media_server.config import WebRtcConfig
from media_server.errors import BadRequestError, ConfigError, PeerGoneError, ServerFullError
from media_server.events import Channel, ClearSound, DigitPressed, TranscriptGrew
from media_server.metrics import Metrics
from media_server.transport.webrtc.aiortc_private import end_connecting, hold_connecting
from media_server.transport.webrtc.peer import FIGURES, WebRtcPeer
from tests.transport.webrtc.far_end import CONFIG, FarEnd, OnePacing, PlainWire, calling, frequency_hz, unanswered

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(30)]

LIMIT_S = 10.0
"""For each wait: what pytest-timeout raises may land in another task than the test's and be lost there."""


class Call:
    """A running call."""

    def __init__(
        self, peer: WebRtcPeer, task: asyncio.Task[None], sound_in: LiveQueue, channels: list[Channel]
    ) -> None:
        self.peer = peer
        self.task = task
        self.sound_in = sound_in
        self.channels = channels

    async def hear(self, n_samples: int) -> tuple[list[AudioChunk], Pcm]:
        """Return the next chunks of together so many samples, from the first sound on."""
        chunks: list[AudioChunk] = []
        async with asyncio.timeout(LIMIT_S):
            while sum(len(chunk.pcm) for chunk in chunks) < n_samples:
                item = await self.sound_in.get()
                assert item is not None
                if chunks or item[0].pcm.any():
                    chunks.append(item[0])
        return chunks, np.concatenate([chunk.pcm for chunk in chunks])

    async def lost(self) -> str:
        """Return why the connection was lost."""
        with pytest.raises(PeerGoneError) as gone:
            await self.task
        return str(gone.value)


@asynccontextmanager
async def running(
    far: FarEnd, *, playout: Playout | None = None, config: WebRtcConfig = CONFIG, address: str = "127.0.0.1"
) -> AsyncIterator[Call]:
    channels: list[Channel] = []
    sound_in = LiveQueue(10_000)
    async with calling(far, channels, config, address) as peer:
        task = asyncio.ensure_future(peer.run(sound_in, playout or Playout()))
        try:
            yield Call(peer, task, sound_in, channels)
        finally:
            task.cancel()
            await asyncio.wait([task])


def tone_playout(seconds: int) -> Playout:
    playout = Playout()
    at = np.arange(24_000 * seconds) / 24_000
    playout.take_floor("reply").write((8_000 * np.sin(2 * np.pi * 440 * at)).astype(np.int16))
    return playout


@pytest.mark.parametrize("codec", ["opus", "g722", "pcmu", "pcma"])
async def test_the_callers_tone_is_heard_at_its_pitch_and_level(codec: str) -> None:
    async with running(FarEnd(tone_hz=1_000, codec=codec)) as call:
        chunks, pcm = await call.hear(19_200)

    assert frequency_hz(pcm[-8_000:], 16_000) == 1_000
    assert np.std(pcm[-8_000:].astype(float)) == pytest.approx(8_000 / 2**0.5, rel=0.06)
    assert all(one.end_pts == two.pts for one, two in itertools.pairwise(chunks))
    assert call.peer.counts.lost == 0


@pytest.mark.parametrize(("codec", "rate_hz"), [("opus", 48_000), ("g722", 16_000), ("pcmu", 8_000)])
async def test_what_we_say_is_heard_by_the_caller_at_its_pitch_and_level(codec: str, rate_hz: int) -> None:
    far = FarEnd(codec=codec)
    async with running(far, playout=tone_playout(3)), asyncio.timeout(LIMIT_S):
        heard = await far.hear(70)

    settled = heard[-rate_hz // 2 :]
    assert frequency_hz(settled, rate_hz) == 440
    assert np.std(settled.astype(float)) == pytest.approx(8_000 / 2**0.5, rel=0.06)


@pytest.mark.parametrize(("codec", "payload_type", "n_ticks"), [("pcmu", 0, 160), ("opus", 96, 960)])
async def test_a_key_is_heard_and_its_packets_are_not_missed_as_sound(
    codec: str, payload_type: int, n_ticks: int
) -> None:
    far = FarEnd(codec=codec, keys_hz=[n_ticks * 50])
    silent = OpusEncoder(bitrate_bps=32_000, complexity=5).encode(silence(480)) if codec == "opus" else b"\xff" * 160
    pressed: list[DigitPressed] = []
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        call.peer.on_digit = pressed.append
        await call.sound_in.get()  # the call is heard from now on
        for n in range(18):
            if 5 <= n < 13:
                n_told = min(n, 10) - 4
                event = bytes([11, 0x80 * (n >= 10) | 10]) + (n_told * n_ticks).to_bytes(2)
                await far.send_packet(110, n, 5 * n_ticks, event)
            else:
                await far.send_packet(payload_type, n, n * n_ticks, silent)
        while call.peer.counts.received < 10:
            await call.sound_in.get()

    assert pressed == [DigitPressed("#", 120)]
    assert (call.peer.counts.received, call.peer.counts.lost) == (10, 0)


async def test_a_key_whose_end_was_lost_is_told_all_the_same() -> None:
    far = FarEnd(codec="pcmu", keys_hz=[8_000])
    pressed: list[DigitPressed] = []
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        call.peer.on_digit = pressed.append
        await call.sound_in.get()  # the call is heard from now on
        await far.send_packet(110, 0, 0, b"\x05\x0a\x01\x40")
        while not pressed:
            await call.sound_in.get()

    assert pressed == [DigitPressed("5", 40)]


async def test_timestamps_and_sequence_numbers_go_on_evenly_through_speech_and_silence() -> None:
    far = FarEnd()
    seen: list[RtpPacket] = []
    enough = asyncio.Event()
    receiver = far.transceiver.receiver
    handle = receiver._handle_rtp_packet

    async def look(packet: RtpPacket, arrival_time_ms: int) -> None:
        seen.append(packet)
        if len(seen) == 60:
            enough.set()
        await handle(packet, arrival_time_ms)

    receiver._handle_rtp_packet = look  # type: ignore[method-assign]
    playout = Playout()
    playout.take_floor("reply").write(np.full(24_000 // 2, 1_000, dtype=np.int16))
    async with running(far, playout=playout):
        await asyncio.wait_for(enough.wait(), 5)

    assert {(b.timestamp - a.timestamp) % 2**32 for a, b in itertools.pairwise(seen)} == {960}
    assert {(b.sequence_number - a.sequence_number) % 2**16 for a, b in itertools.pairwise(seen)} == {1}
    assert {packet.extensions.mid for packet in seen} == {"0"}


async def test_commands_and_events_travel_on_the_data_channel() -> None:
    far = FarEnd()
    async with running(far) as call:
        await asyncio.wait_for(far.opened.wait(), 5)
        far.channel.send("clear 1")
        far.channel.send("sing 2")
        error = await asyncio.wait_for(far.messages.get(), 5)
        (channel,) = call.channels
        async with aclosing(channel.commands()) as commands:
            command = await anext(commands)
            channel.send(TranscriptGrew("item", "x" * 100_000))
            text = await asyncio.wait_for(far.messages.get(), 5)
            await far.pc.close()
            rest = [command async for command in commands]

    assert command == ClearSound(event_id="1")
    assert error == "error unknown_word 2"
    assert text == "text " + "x" * 100_000
    assert rest == []


async def test_a_data_channel_of_another_name_is_closed() -> None:
    far = FarEnd()
    other = far.pc.createDataChannel("chat")
    closed = asyncio.Event()
    other.on("close", closed.set)
    async with running(far) as call:
        await asyncio.wait_for(closed.wait(), 5)
        await asyncio.wait_for(far.opened.wait(), 5)

    assert len(call.channels) == 1


async def test_a_caller_who_closes_the_channel_may_open_another() -> None:
    far = FarEnd()
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await far.opened.wait()
        closed = asyncio.Event()
        far.channel.on("close", closed.set)
        far.channel.close()
        await closed.wait()
        again = far.pc.createDataChannel("oai-events")
        again.on("message", far.messages.put_nowait)
        again.on("open", lambda: again.send("sing 3"))

        assert await far.messages.get() == "error unknown_word 3"
        assert len(call.channels) == 2


async def test_when_the_caller_hangs_up_the_call_ends_at_once() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call:
        await call.hear(1_600)
        await far.pc.close()

        async with asyncio.timeout(1):
            await call.task

    assert call.task.exception() is None


async def test_a_caller_who_no_longer_consents_to_be_sent_to_is_lost() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call:
        await call.hear(1_600)
        await call.peer._transceiver.receiver.transport.transport._connection.close()  # as aioice does then

        reason = await asyncio.wait_for(call.lost(), 1)

    assert reason


async def test_a_caller_who_falls_silent_without_a_word_is_gone_after_a_while() -> None:
    far = FarEnd(tone_hz=1_000)
    config = CONFIG.model_copy(update={"gone_after_s": 0.3})
    async with running(far, config=config) as call:
        await call.hear(1_600)
        pull_the_plug(far)

        reason = await asyncio.wait_for(call.lost(), 2)

    assert reason == "nothing was heard from the peer for 0.3 s"


def pull_the_plug(far: FarEnd) -> None:
    for protocol in protocols_of(far):
        protocol.datagram_received = lambda *_: None  # type: ignore[method-assign]
        protocol.transport.sendto = lambda *_: None  # type: ignore[method-assign]


async def test_a_caller_whose_address_changed_is_heard_and_hears_over_the_same_connection() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far, playout=tone_playout(20)) as call, asyncio.timeout(LIMIT_S):
        await far.opened.wait()
        await call.hear(1_600)
        before = [protocol.transport for protocol in protocols_of(far)]
        moved = await far.move("127.0.0.2", call.peer.restart)
        for transport in before:
            transport.abort()
        lost_before = call.peer.counts.received
        while call.peer.counts.received < lost_before + 60:
            _, pcm = await call.hear(8_000)
        far.forget()
        heard = await far.hear(30)
        far.channel.send("sing 4")
        message = await far.messages.get()

    assert moved
    assert frequency_hz(heard[-24_000:], 48_000) == 440
    assert frequency_hz(pcm[-8_000:], 16_000) == 1_000
    assert message == "error unknown_word 4"


async def test_after_a_restart_the_caller_may_restart_again() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        moves = [await far.move(address, call.peer.restart) for address in ("127.0.0.2", "127.0.0.3")]
        received = call.peer.counts.received
        while call.peer.counts.received < received + 25:
            await call.hear(1_600)

    assert moves == [True, True]


async def test_an_offer_of_another_connection_restarts_nothing() -> None:
    far, stranger = FarEnd(tone_hz=1_000), FarEnd()
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        of_a_stranger = await call.peer.restart(await stranger.offer())
        of_before = await call.peer.restart(far.pc.localDescription.sdp)
        await call.hear(1_600)
        await stranger.pc.close()

    assert of_a_stranger is None
    assert of_before is None


async def test_a_connection_that_is_gone_cannot_be_restarted() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        await call.peer.close()

        assert not await far.move("127.0.0.2", call.peer.restart)


async def test_a_restart_that_finds_no_path_leaves_the_old_one_alone() -> None:
    far = FarEnd(tone_hz=1_000)
    config = CONFIG.model_copy(update={"connect_timeout_s": 0.3})
    async with running(far, config=config) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        answer = await call.peer.restart(unreachable(far.pc.localDescription.sdp, "zzzz"))
        received = call.peer.counts.received
        while call.peer.counts.received < received + 40:
            await call.hear(1_600)

        assert answer is not None
        assert not call.task.done()


def unreachable(offer: str, credentials: str) -> str:
    """Return an offer to restart with other credentials, four letters, and without a candidate."""
    offer = re.sub(r"(a=ice-(?:ufrag|pwd):)\S{4}", rf"\g<1>{credentials}", offer)
    return re.sub(r"a=candidate:.*\r\n", "", offer)


async def test_of_restarts_that_are_asked_for_at_once_the_last_one_counts() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        await call.peer.restart(unreachable(far.pc.localDescription.sdp, "xxxx"))
        await asyncio.gather(
            call.peer.restart(unreachable(far.pc.localDescription.sdp, "yyyy")),
            call.peer.restart(unreachable(far.pc.localDescription.sdp, "zzzz")),
        )
        under_way = [task for task in asyncio.all_tasks() if task.get_name() == "restart" and not task.cancelling()]

        assert len(under_way) == 1


async def test_who_only_listens_is_understood_while_they_restart() -> None:
    far = FarEnd()
    far.transceiver.direction = "recvonly"
    async with running(far, playout=tone_playout(20)) as call, asyncio.timeout(LIMIT_S):
        await far.opened.wait()
        await call.peer.restart(unreachable(far.pc.localDescription.sdp, "zzzz"))
        (restart,) = [task for task in asyncio.all_tasks() if task.get_name() == "restart"]
        far.channel.send("sing 5")
        message = await far.messages.get()

        assert message == "error unknown_word 5"
        assert not restart.done()


async def test_a_restart_takes_checks_that_tell_no_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    build = aioice.Connection.build_request

    def build_without(connection: aioice.Connection, pair: Any, nominate: bool) -> Any:
        request = build(connection, pair, nominate)
        del request.attributes["PRIORITY"]
        return request

    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        monkeypatch.setattr(aioice.Connection, "build_request", build_without)
        assert await far.move("127.0.0.2", call.peer.restart)
        (restart,) = [task for task in asyncio.all_tasks() if task.get_name() == "restart"]
        await restart
        path = call.peer._transceiver.receiver.transport.transport._connection._nominated[1]

        assert path.remote_addr[0] == "127.0.0.2"


def protocols_of(far: FarEnd) -> list[StunProtocol]:
    return list(far.transceiver.receiver.transport.transport._connection._protocols)


async def test_a_caller_who_never_connects_is_gone_after_the_connect_timeout() -> None:
    far = FarEnd()
    config = CONFIG.model_copy(update={"connect_timeout_s": 0.2})
    peer = unanswered(config)
    await peer.answer(await far.offer())
    await far.pc.close()

    with pytest.raises(PeerGoneError, match=r"did not connect within 0\.2 s"):
        await asyncio.wait_for(peer.run(LiveQueue(), Playout()), 3)


async def test_an_offer_without_candidates_connects() -> None:
    far = FarEnd(tone_hz=1_000)
    channels: list[Channel] = []
    peer = unanswered(on_channel=channels.append)
    offer = re.sub(r"a=(candidate:.*|end-of-candidates)\r\n", "", await far.offer())
    await far.accept(await peer.answer(offer))
    sound_in = LiveQueue(10_000)
    task = asyncio.ensure_future(peer.run(sound_in, Playout()))

    _, pcm = await Call(peer, task, sound_in, channels).hear(3_200)
    task.cancel()
    await asyncio.wait([task])
    await far.pc.close()

    assert "candidate" not in offer
    assert pcm.any()


async def test_an_answer_shows_one_codec_on_loopback_and_asks_for_copies_of_lost_packets() -> None:
    far = FarEnd()
    peer = unanswered()

    lines = (await peer.answer(await far.offer())).splitlines()
    await peer.close()
    await far.pc.close()

    assert [line for line in lines if line.startswith("a=rtpmap")] == ["a=rtpmap:96 opus/48000/2"]
    assert [line for line in lines if line.startswith("a=fmtp")] == ["a=fmtp:96 minptime=10;useinbandfec=1;stereo=0"]
    assert {line.split()[4] for line in lines if line.startswith("a=candidate")} == {"127.0.0.1"}
    assert len([line for line in lines if line.startswith("a=msid:")]) == 1
    assert [line.split()[0] for line in lines if line.startswith("m=")] == ["m=audio", "m=application"]


async def test_an_offer_with_the_data_channel_first_is_answered_and_connects() -> None:
    far = FarEnd(tone_hz=1_000)
    head, audio, application = re.split(r"(?=m=)", await far.offer())
    swapped = head.replace("BUNDLE 0 1", "BUNDLE 1 0") + application + audio
    peer = unanswered()

    answer = await peer.answer(swapped)
    head, application, audio = re.split(r"(?=m=)", answer)
    # The far end's own offer was in the usual order, and so must be the answer that it gets.
    await far.accept(head.replace("BUNDLE 1 0", "BUNDLE 0 1") + audio + application)
    sound_in = LiveQueue(10_000)
    task = asyncio.ensure_future(peer.run(sound_in, Playout()))
    _, pcm = await Call(peer, task, sound_in, []).hear(3_200)
    task.cancel()
    await asyncio.wait([task])
    await far.pc.close()

    assert application.startswith("m=application")
    assert pcm.any()


@pytest.mark.parametrize("offer", ["", "v=0\r\n", "nonsense", "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 96\r\n"])
async def test_an_offer_that_aiortc_refuses_is_a_bad_request(offer: str) -> None:
    peer = unanswered()

    with pytest.raises(BadRequestError):
        await peer.answer(offer)


async def test_an_offer_without_a_codec_that_we_speak_is_a_bad_request() -> None:
    far = FarEnd(codec="pcmu")
    peer = unanswered()

    with pytest.raises(BadRequestError, match="the offer cannot be answered"):
        await peer.answer((await far.offer()).replace("PCMU", "GSM"))
    await far.pc.close()


async def test_an_address_that_is_not_ours_is_told_to_the_operator() -> None:
    far = FarEnd()
    peer = unanswered(address="192.0.2.7")

    with pytest.raises(ConfigError, match=r"media cannot bind to 192\.0\.2\.7"):
        await peer.answer(await far.offer())
    await far.pc.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_a_call_may_go_over_ipv6() -> None:
    async with running(FarEnd(tone_hz=1_000), address="::1") as call:
        _, pcm = await call.hear(9_600)

    assert frequency_hz(pcm[-8_000:], 16_000) == 1_000


async def test_a_call_goes_through_the_ports_that_are_configured() -> None:
    config = CONFIG.model_copy(update={"port_min": 42_100, "port_max": 42_199})
    far = FarEnd(tone_hz=1_000)
    async with running(far, config=config) as call:
        await call.hear(1_600)
        (candidate,) = far.transceiver.receiver.transport.transport.getRemoteCandidates()

    assert 42_100 <= candidate.port <= 42_199


async def test_without_a_free_port_the_caller_is_told_to_come_back() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        config = CONFIG.model_copy(update={"port_min": port, "port_max": port})
        far = FarEnd()
        peer = unanswered(config)

        with pytest.raises(ServerFullError, match=f"no UDP port is free for media: {port} to {port} are configured"):
            await peer.answer(await far.offer())
        await far.pc.close()


async def test_behind_a_nat_the_announced_address_is_told_and_the_call_connects_all_the_same() -> None:
    config = CONFIG.model_copy(update={"announce": ("192.0.2.7", "2001:db8::7")})
    far = FarEnd(tone_hz=1_000)
    async with running(far, config=config) as call:
        _, pcm = await call.hear(9_600)
        candidates = far.transceiver.receiver.transport.transport.getRemoteCandidates()

    assert [(each.ip, each.type) for each in candidates][:1] == [("192.0.2.7", "host")]
    assert "2001:db8::7" not in {each.ip for each in candidates}
    assert frequency_hz(pcm[-8_000:], 16_000) == 1_000


async def test_cancelling_a_call_leaves_no_task_and_no_socket() -> None:
    before = len(asyncio.all_tasks())
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call:
        await call.hear(1_600)
        ice = call.peer._transceiver.receiver.transport.transport._connection
        sockets = [protocol.transport for protocol in ice._protocols]
        call.task.cancel()
        await asyncio.wait([call.task])

        assert call.task.cancelled()
        assert all(socket.is_closing() for socket in sockets)
        await call.peer.close()
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


Moment = Callable[[RTCDtlsTransport], bool]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(lambda dtls: dtls.transport.state == "checking", id="ice-checks"),
        pytest.param(lambda dtls: bool(dtls.transport._connection._nominated), id="ice-has-a-pair"),
        pytest.param(lambda dtls: dtls.transport.state == "completed", id="ice-is-done"),
        pytest.param(lambda dtls: dtls.state == "connecting", id="dtls-begins"),
        pytest.param(lambda dtls: dtls.state == "connected", id="dtls-is-done"),
    ],
)
async def test_hanging_up_while_the_call_connects_leaves_no_task(moment: Moment) -> None:
    before = asyncio.all_tasks()
    far = FarEnd()
    fars = hold_connecting(far.pc)  # it is aiortc as well
    peer = unanswered()
    await far.accept(await peer.answer(await far.offer()))
    call = asyncio.ensure_future(peer.run(LiveQueue(), Playout()))
    await asyncio.sleep(0)  # or the call would be cancelled before it begins
    async with asyncio.timeout(LIMIT_S):
        while not moment(peer._transceiver.receiver.transport):  # noqa: ASYNC110 - aiortc has no event for each
            await asyncio.sleep(0)

    call.cancel()
    await asyncio.wait([call])
    await end_connecting(fars)
    await far.pc.close()
    for _ in range(3):
        await asyncio.sleep(0)  # for what was cancelled to end

    assert asyncio.all_tasks() - before == set()


async def test_a_caller_who_sends_no_sound_is_heard_as_silence_in_real_time() -> None:
    loop = asyncio.get_running_loop()
    async with running(FarEnd()) as call, asyncio.timeout(LIMIT_S):
        first = await call.sound_in.get()
        started_s = loop.time()
        heard_ms = 0.0
        while heard_ms < 400:
            item = await call.sound_in.get()
            assert item is not None
            heard_ms += item[0].duration_ms
        took_s = loop.time() - started_s

    assert first is not None
    assert not first[0].pcm.any()
    assert took_s > 0.3


async def test_the_caller_is_sent_reports_of_what_arrived() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        reports: list[object] = []
        while not reports:
            await call.sound_in.get()
            stats = await far.transceiver.sender.getStats()
            reports = [report for report in stats.values() if report.type == "remote-inbound-rtp"]

    assert reports[0].packetsLost == 0  # type: ignore[attr-defined]


@asynccontextmanager
async def counted(far: FarEnd, metrics: Metrics) -> AsyncIterator[Call]:
    """Yield a running call that the figures are told of."""
    pacing = OnePacing(metrics)
    peer = WebRtcPeer(
        CONFIG, bind_host="127.0.0.1", wire=PlainWire, on_channel=lambda _: None, pacing=pacing, metrics=metrics
    )
    await far.accept(await peer.answer(await far.offer()))
    sound_in = LiveQueue(10_000)
    task = asyncio.ensure_future(peer.run(sound_in, Playout()))
    try:
        yield Call(peer, task, sound_in, [])
    finally:
        task.cancel()
        await asyncio.wait([task])
        await far.pc.close()


async def test_what_happened_to_the_packets_of_a_call_is_in_the_figures_when_it_has_ended() -> None:
    far, metrics = FarEnd(codec="pcmu", keys_hz=[8_000]), Metrics()
    send_raw = far.transceiver.sender.transport._send_rtp
    async with counted(far, metrics) as call, asyncio.timeout(LIMIT_S):
        await call.sound_in.get()  # the call is heard from now on
        for seq in (0, 1, 4, 5, 6):
            await far.send_packet(0, seq, seq * 160, b"\xff" * 160)
        await far.send_packet(0, 7, 7 * 160, b"")  # no sound
        await far.send_packet(110, 8, 8 * 160, b"\x05")  # no key
        await send_raw(b"\xa0\x00" + bytes(10) + b"\xff")  # no RTP: more padding than packet
        while call.peer._receiver.malformed < 1 or call.peer.counts.lost < 2:
            await call.sound_in.get()
    figures = metrics.snapshot()

    assert figures["packets_received_total"] == 6
    assert figures["packets_lost_total"] == 2
    assert figures["packets_malformed_total"] == 3
    assert figures["sound_concealed_ms"] == call.peer.counts.concealed_ms
    assert figures["sound_filled_ms"] == call.peer.counts.filled_ms > 0


async def test_the_packets_of_calls_are_in_the_figures_while_they_last_and_add_up() -> None:
    metrics = Metrics()
    async with asyncio.timeout(LIMIT_S):
        async with counted(FarEnd(tone_hz=1_000), metrics) as one, counted(FarEnd(tone_hz=1_000), metrics) as two:
            while metrics.snapshot()["packets_received_total"] < 60:
                await one.sound_in.get()
        received = metrics.snapshot()["packets_received_total"]

    assert received == one.peer.counts.received + two.peer.counts.received


async def test_the_packets_that_the_caller_missed_are_in_the_figures() -> None:
    metrics = Metrics()
    async with counted(FarEnd(tone_hz=1_000), metrics) as call, asyncio.timeout(LIMIT_S):
        await call.hear(1_600)
        call.peer._sender.lost_share = 0.25  # as a report of the caller would have it
        call.peer._count()
        before = metrics.snapshot()
        call.peer._sent = 40
        call.peer._count()
        figures = metrics.snapshot()

    assert figures["packets_sent_total"] == before["packets_sent_total"] + 40
    assert figures["packets_sent_lost_total"] == before["packets_sent_lost_total"] + 10


def test_each_thing_that_happens_to_packets_has_a_figure() -> None:
    assert set(FIGURES) == {each.name for each in fields(JitterCounts)}


async def test_the_round_trip_time_is_known_from_the_reports() -> None:
    far = FarEnd(tone_hz=1_000)
    async with running(far) as call, asyncio.timeout(LIMIT_S):
        while call.peer.rtt_ms is None:
            await call.sound_in.get()

        assert 0 <= call.peer.rtt_ms < 200


def test_it_works_on_uvloop() -> None:
    async def scene() -> float:
        async with running(FarEnd(tone_hz=1_000)) as call:
            _, pcm = await call.hear(9_600)
        return frequency_hz(pcm[-8_000:], 16_000)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scene()) == 1_000
