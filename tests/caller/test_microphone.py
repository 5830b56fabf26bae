"""The microphone: 20 ms every 20 ms, whatever is being said."""

import asyncio

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from media_server.audio.chunk import Pcm
from media_server.audio.levels import level_dbfs
from media_server.audio.opus import OpusDecoder
from media_server.caller.microphone import FRAME_SAMPLES, Microphone
from media_server.errors import PeerGoneError
from tests.virtual_time import run_virtual

LOUD: Pcm = (8000 * np.sin(np.arange(FRAME_SAMPLES * 3) * 0.2)).astype(np.int16)


async def sent(microphone: Microphone, n: int) -> list[tuple[float, int, bool]]:
    """Return when each of `n` packets was sent, its RTP ticks, and whether it is loud."""
    decoder = OpusDecoder()
    packets = []
    for _ in range(n):
        packet = await microphone.recv()
        loud = level_dbfs(decoder.decode(bytes(packet))) > -50
        assert packet.pts is not None
        packets.append((round(asyncio.get_running_loop().time(), 3), packet.pts, loud))
    return packets


def test_silence_flows_on_a_grid_of_20_ms() -> None:
    packets = run_virtual(sent(Microphone(), 4))

    assert packets == [(0.0, 0, False), (0.02, 960, False), (0.04, 1920, False), (0.06, 2880, False)]


def test_a_recording_is_followed_by_silence_and_its_last_sample_is_timed() -> None:
    async def main() -> tuple[list[bool], float]:
        microphone = Microphone()
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(microphone.play(LOUD[: FRAME_SAMPLES * 2 + 100]))
            await asyncio.sleep(0)
            packets = await sent(microphone, 6)
        return [loud for _, _, loud in packets], playing.result()

    loud, ended_s = run_virtual(main())

    assert (loud[:3], loud[-1]) == ([True, True, True], False)  # Opus rings for a packet or two
    assert ended_s == pytest.approx(0.04, abs=0.001)


def test_recordings_follow_each_other_without_a_gap() -> None:
    async def main() -> list[float]:
        microphone = Microphone()
        async with asyncio.TaskGroup() as group:
            plays = [group.create_task(microphone.play(LOUD[: FRAME_SAMPLES + 240])) for _ in range(2)]
            await asyncio.sleep(0)
            await sent(microphone, 4)
        return [round(play.result(), 3) for play in plays]

    assert run_virtual(main()) == [0.02, 0.04]


def test_a_stall_is_left_out_and_not_sent_in_a_burst() -> None:
    async def main() -> list[tuple[float, int, bool]]:
        microphone = Microphone()
        before = await sent(microphone, 2)
        await asyncio.sleep(1.0)
        return before + await sent(microphone, 3)

    packets = run_virtual(main())

    assert [at_s for at_s, _, _ in packets] == pytest.approx([0, 0.02, 1.02, 1.04, 1.06], abs=0.001)
    assert [ticks for _, ticks, _ in packets] == [0, 960, 960 * 51, 960 * 52, 960 * 53]


def test_a_late_packet_does_not_move_the_grid() -> None:
    async def main() -> list[tuple[float, int, bool]]:
        microphone = Microphone()
        before = await sent(microphone, 1)
        await asyncio.sleep(0.05)
        return before + await sent(microphone, 4)

    assert [at_s for at_s, _, _ in run_virtual(main())] == pytest.approx([0, 0.05, 0.05, 0.06, 0.08], abs=0.001)


def test_what_is_cancelled_falls_silent() -> None:
    async def main() -> list[bool]:
        microphone = Microphone()
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(microphone.play(LOUD))
            await asyncio.sleep(0)
            packets = await sent(microphone, 1)
            playing.cancel()
            await asyncio.sleep(0)
            packets += await sent(microphone, 3)
        return [loud for _, _, loud in packets]

    loud = run_virtual(main())

    assert (loud[0], loud[-1]) == (True, False)


def test_the_end_of_the_call_ends_the_recording() -> None:
    async def main() -> None:
        microphone = Microphone()
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(_ending(microphone))
            await asyncio.sleep(0)
            microphone.stop()
            assert await playing == "the call ended while the caller spoke"
        with pytest.raises(MediaStreamError):
            await microphone.recv()
        with pytest.raises(PeerGoneError, match="the call is over"):
            await microphone.play(LOUD)

    run_virtual(main())


async def _ending(microphone: Microphone) -> str:
    try:
        await microphone.play(LOUD)
    except PeerGoneError as error:
        return str(error)
    return ""
