"""What the media processes know of each other without asking."""

import fcntl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from signaling.board import Board


def test_the_board_is_one_for_all(tmp_path: Path) -> None:
    one, other = Board(tmp_path / "board", 3), Board(tmp_path / "board", 3)
    one.write(0, calls=3, ready=True)
    one.write(1, calls=1, ready=True)
    one.write(2, calls=0, ready=False)

    assert other.calls == 4
    assert other.ready == [0, 1]


def test_the_board_knows_who_was_ever_ready(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    board.write(0, calls=0, ready=True)
    board.write(0, calls=0, ready=False)
    board.write(1, calls=0, ready=False)

    before = [board.was_ready(0), board.was_ready(1)]
    board.clear(0)

    assert before == [True, False]
    assert not board.was_ready(0)


def test_who_takes_a_place_waits_while_another_counts(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    with ThreadPoolExecutor() as threads, (tmp_path / "board").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threads.submit(board.take_place, 0, calls=1, limit=1)
        board.write(1, calls=1, ready=True)
        fcntl.flock(file, fcntl.LOCK_UN)

        assert not waiting.result()


def test_the_beats_of_a_process_begin_anew_with_the_next(tmp_path: Path) -> None:
    one, other = Board(tmp_path / "board", 2), Board(tmp_path / "board", 2)

    one.beat(1)
    one.beat(1)
    before = [other.beats(0), other.beats(1)]
    other.clear(1)

    assert before == [0, 2]
    assert one.beats(1) == 0


def test_a_board_whose_file_is_gone_goes_on_for_those_who_have_it(tmp_path: Path) -> None:
    one, other = Board(tmp_path / "board", 2), Board(tmp_path / "board", 2)
    one.write(0, calls=0, ready=True)

    (tmp_path / "board").unlink()

    assert other.give(1) == 0
    assert one.given(0) == 1


def test_what_a_process_had_given_when_it_died_is_no_longer_counted(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)
    board.write(0, calls=0, ready=True)
    board.give(1)

    before = board.given(0)
    board.clear(1)

    assert (before, board.given(0)) == (1, 0)


def test_more_counters_than_the_board_has_room_for_are_refused(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 2)

    with pytest.raises(ValueError, match="different structures"):
        board.write_counted(0, [1.0] * 1025)
    assert not any(board.read_counted(1))
