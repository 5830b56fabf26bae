import pytest

from media_server.transport.webrtc.pacing import Pacer


def test_deadlines_lie_on_a_grid_whenever_they_are_met() -> None:
    pacer = Pacer(0.02, 10.0)

    waits = []
    for now_s in (10.0, 10.025, 10.0401, 10.063):
        pacer.tick(now_s)
        waits.append(pacer.wait_s(now_s))

    assert waits == pytest.approx([0.02, 0.015, 0.0199, 0.017])


def test_one_missed_deadline_is_made_up_for() -> None:
    pacer = Pacer(0.02, 10.0)
    pacer.tick(10.0)

    late_s = pacer.tick(10.045)

    assert late_s == pytest.approx(0.025)
    assert pacer.wait_s(10.045) == 0
    pacer.tick(10.045)
    assert pacer.wait_s(10.045) == pytest.approx(0.015)


def test_after_a_stall_there_is_no_burst() -> None:
    pacer = Pacer(0.02, 10.0)
    pacer.tick(10.0)

    late_s = pacer.tick(10.5)

    assert late_s == pytest.approx(0.48)
    assert pacer.wait_s(10.5) == pytest.approx(0.02)
