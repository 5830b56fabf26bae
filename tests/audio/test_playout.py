"""The playout: what goes to the ear, and the ledger of what was heard. 24 samples are a millisecond."""

import asyncio

import numpy as np

from media_server.audio.chunk import Pcm
from media_server.audio.clip import Clip
from media_server.audio.playout import Heard, Mark, Playout


def tone(n_samples: int, value: int = 1000) -> Pcm:
    return np.full(n_samples, value, dtype=np.int16)


def test_an_empty_playout_reads_silence() -> None:
    pcm = Playout().read(480)

    assert pcm.shape == (480,)
    assert pcm.dtype == np.int16
    assert not pcm.any()


def test_chunks_are_read_without_a_seam_and_padded_with_silence() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.write(np.arange(300, dtype=np.int16))
    floor.write(np.arange(300, 500, dtype=np.int16))

    first, second = playout.read(480), playout.read(480)

    assert (first == np.arange(480)).all()
    assert (second[:20] == np.arange(480, 500)).all()
    assert not second[20:].any()


def test_the_ledger_counts_the_marks_that_were_read() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.write(tone(960), (Mark(480, 5), Mark(960, 9), Mark(1200, 12)))
    counts = []
    for _ in range(3):
        heard = playout.heard()
        assert heard is not None
        counts.append((heard.heard_ms, heard.n_chars))
        playout.read(480)

    assert counts == [(0, 0), (20, 5), (40, 9)]


def test_a_mark_beyond_the_last_sample_counts_at_the_end() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.write(tone(480), (Mark(9999, 7),))
    floor.finish()
    playout.read(480)

    assert playout.heard() == Heard("r", 20, 7)


def test_after_a_cut_the_next_read_is_silence_and_late_writes_are_swallowed() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.write(tone(4800), (Mark(480, 3),))
    playout.read(480)
    heard = playout.cut()
    floor.write(tone(4800))

    assert heard == Heard("r", 20, 3)
    assert not playout.read(480).any()
    assert not playout.speaking


def test_a_new_reply_silences_the_old_one() -> None:
    playout = Playout()
    old = playout.take_floor("old")
    old.write(tone(4800, 111))
    new = playout.take_floor("new")
    new.write(tone(480, 222))
    old.write(tone(480, 111))

    assert set(playout.read(960)) == {222, 0}
    assert not old.held


def test_ducking_slides_within_one_read_and_comes_back() -> None:
    playout = Playout(duck_db=-20.0)
    playout.take_floor("r").write(tone(4800, 10_000))
    playout.duck()
    down, low = playout.read(480), playout.read(480)
    playout.unduck()
    up, full = playout.read(480), playout.read(480)

    assert (down[0], down[-1]) == (10_000, 1000)
    assert set(low) == {1000}
    assert (up[0], up[-1]) == (1000, 10_000)
    assert set(full) == {10_000}


async def test_a_writer_waits_for_room_and_loses_it_with_the_floor() -> None:
    playout = Playout(ahead_ms=40)
    floor = playout.take_floor("r")
    floor.write(tone(1440))
    waiting = asyncio.create_task(playout.room(floor))
    await asyncio.sleep(0)
    held_before = not waiting.done()
    playout.read(480)
    playout.read(480)
    got_room = await waiting
    floor.write(tone(1440))
    waiting = asyncio.create_task(playout.room(floor))
    await asyncio.sleep(0)
    playout.cut()

    assert held_before
    assert got_room
    assert await waiting is False


async def test_a_reply_without_sound_never_starts() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.finish()

    assert await playout.started(floor) is False
    assert await playout.progressed(floor, 0) is None


def test_a_frame_of_a_clip_is_named_while_it_is_played_as_it_is() -> None:
    playout, clip = Playout(), Clip(tone(4 * 480))
    playout.take_floor("r").write(clip.pcm, clip=clip)
    named = []
    for frame in range(5):
        if frame == 1:
            playout.duck()
        if frame == 2:
            playout.unduck()
        playout.read(480)
        named.append(playout.ready)

    assert named == [(clip, 0), None, None, (clip, 3), None]


def test_a_clip_behind_other_sound_begins_with_a_frame_once_it_is_aligned() -> None:
    clip = Clip(tone(480))
    named = []
    for align in (False, True):
        playout = Playout()
        floor = playout.take_floor("r")
        floor.write(tone(100))
        if align:
            floor.align()
        floor.write(clip.pcm, clip=clip)
        playout.read(480)
        playout.read(480)
        named.append(playout.ready)

    assert named == [None, (clip, 0)]


def test_the_silence_that_aligns_counts_as_heard() -> None:
    playout = Playout()
    floor = playout.take_floor("r")
    floor.write(tone(100))
    floor.align()
    floor.align()
    floor.write(tone(480), (Mark(floor.written_samples + 480, 3),))
    playout.read(480)
    playout.read(480)

    assert playout.heard() == Heard("r", 40, 3)
