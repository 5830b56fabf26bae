import asyncio
import weakref
from collections import Counter
from itertools import pairwise

import pytest

from media_server.metrics import Metrics
from media_server.transport.webrtc.pacing import Beat, Pacing
from tests.garbage import nothing_collected
from tests.virtual_time import VirtualLoop, run_virtual


async def serve(pacing: Pacing, beats: list[Beat], seconds: float) -> list[BaseException | None]:
    """Let calls be served for so long, in virtual time, and return what ended each before."""
    running = asyncio.create_task(pacing.run())
    calls = [asyncio.create_task(pacing.keep(beat)) for beat in beats]
    await asyncio.sleep(seconds)
    ends = [call.exception() if call.done() else None for call in calls]
    for task in [*calls, running]:
        task.cancel()
    await asyncio.wait([*calls, running])
    return ends


def test_a_call_is_served_every_20_ms_on_a_grid() -> None:
    served: list[float] = []

    run_virtual(serve(Pacing(Metrics()), [served.append], 0.108))

    assert [at_s - served[0] for at_s in served] == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1], abs=1e-4)


def test_a_few_calls_share_a_phase_and_many_are_spread_over_phases_of_5_ms() -> None:
    served: dict[int, float] = {}
    beats: list[Beat] = [lambda now_s, n=n: served.setdefault(n, now_s) for n in range(24)]  # type: ignore[misc]

    run_virtual(serve(Pacing(Metrics()), beats, 0.1))

    phases = [round((served[n] - served[0]) * 1000) % 20 for n in range(24)]
    assert phases == [0] * 4 + [5] * 4 + [10] * 4 + [15] * 4 + [0, 5, 10, 15] * 2


def test_nobody_is_woken_for_a_phase_without_calls() -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pacing = Pacing(Metrics())
        running = asyncio.create_task(pacing.run())
        await asyncio.sleep(1)
        idle = loop.jumps
        call = asyncio.create_task(pacing.keep(lambda _: None))
        await asyncio.sleep(1)
        for task in (call, running):
            task.cancel()
        await asyncio.wait([call, running])
        return idle, loop.jumps - idle

    idle, with_one = run_virtual(main())

    assert idle <= 2
    assert 50 <= with_one <= 53


def test_a_place_that_was_left_is_free() -> None:
    pacing = Pacing(Metrics())

    run_virtual(serve(pacing, [lambda _: None, lambda _: None], 0.1))

    assert pacing.beats == 0


def test_a_beat_that_fails_ends_its_own_call_and_no_other() -> None:
    failed: list[float] = []
    served: list[float] = []

    def fail(now_s: float) -> None:
        failed.append(now_s)
        raise ValueError("a bug of one call")

    ends = run_virtual(serve(Pacing(Metrics()), [fail, served.append], 0.109))

    assert len(failed) == 1
    assert [str(end) for end in ends] == ["a bug of one call", "None"]
    assert len(served) == 6


async def stall(pacing: Pacing, beats: list[Beat], after_s: float, stall_s: float) -> None:
    """Let calls be served, hold the loop once for so long, and let them be served for 0.2 s again."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.call_later(after_s, loop.advance, stall_s)
    await serve(pacing, beats, after_s + stall_s + 0.2)


def test_a_call_that_failed_goes_with_the_last_who_knows_it() -> None:
    class Call:
        def beat(self, due_s: float) -> None:
            raise LookupError

    async def main() -> list[weakref.ref[Call]]:
        pacing = Pacing(Metrics())
        running = asyncio.create_task(pacing.run())
        calls = [Call(), Call()]
        kept, _ = await asyncio.wait([asyncio.create_task(pacing.keep(call.beat)) for call in calls])
        assert [type(each.exception()) for each in kept] == [LookupError, LookupError]
        running.cancel()
        await asyncio.wait([running])
        return [weakref.ref(call) for call in calls]

    with nothing_collected():
        assert [left() for left in run_virtual(main())] == [None, None]


def test_after_a_stall_there_is_no_burst_and_the_phase_stays() -> None:
    metrics = Metrics()
    served: list[float] = []
    sent: list[float] = []

    def beat(due_s: float) -> None:
        served.append(due_s)
        sent.append(asyncio.get_running_loop().time())

    run_virtual(stall(Pacing(metrics), [beat], 0.05, 0.5))
    worst_ms: float = metrics.snapshot()["frame_late_ms"]["max"]

    assert len(served) <= 14  # 0.2 s of 20 ms, before and after, and the ones that were a little late
    assert 490 < worst_ms < 510
    assert all(round((at_s - served[0]) * 1000) % 20 == 0 for at_s in served[:3] + served[-3:])
    assert all(later - earlier > 0.004 for earlier, later in pairwise(served))
    assert all(later - earlier > 0.014 for earlier, later in pairwise(sent))


def sent_around_a_stall(after_s: float, stall_s: float) -> list[list[float]]:
    """Return when the packets of 16 calls, on all phases, went out."""
    sent: list[list[float]] = [[] for _ in range(16)]
    beats: list[Beat] = [lambda _, times=times: times.append(asyncio.get_running_loop().time()) for times in sent]  # type: ignore[misc]
    run_virtual(stall(Pacing(Metrics()), beats, after_s, stall_s))
    return sent


@pytest.mark.parametrize("stall_s", [0.028, 0.038, 0.045, 0.052, 0.065, 0.1, 0.513])
@pytest.mark.parametrize("after_s", [0.0507, 0.0557, 0.0632, 0.0682])
def test_however_long_a_stall_no_call_sends_more_than_two_packets_at_once(after_s: float, stall_s: float) -> None:
    sent = sent_around_a_stall(after_s, stall_s)

    assert max(count for times in sent for count in Counter(times).values()) <= 2


@pytest.mark.parametrize("stall_s", [0.065, 0.1, 0.513])
@pytest.mark.parametrize("after_s", [0.0507, 0.0557, 0.0632, 0.0682])
def test_after_a_stall_of_more_than_two_packets_none_is_made_up_for(after_s: float, stall_s: float) -> None:
    sent = sent_around_a_stall(after_s, stall_s)

    assert min(later - earlier for times in sent for earlier, later in pairwise(times)) > 0.014


def test_lateness_is_counted_for_every_call() -> None:
    metrics = Metrics()
    beats: list[Beat] = [lambda _, n=n: None for n in range(8)]  # type: ignore[misc]

    run_virtual(serve(Pacing(metrics), beats, 0.108))

    assert 40 <= metrics.snapshot()["frame_late_ms"]["count"] <= 48
