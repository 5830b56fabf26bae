"""The folder of a server with several processes, and those that killed servers leave."""

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from media_server.engines.build import SharedWorkers
from media_server.errors import ConfigError
from signaling.shared_folder import remove_abandoned
from signaling.supervisor import Supervisor


async def test_a_temporary_folder_whose_name_is_too_long_for_sockets_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    def build_workers(folder: Path) -> SharedWorkers:
        raise AssertionError(folder)

    with pytest.raises(ConfigError, match=r"TMPDIR: found .*, wanted one whose name has at most 64 bytes"):
        await Supervisor([], 2, "127.0.0.1", 0, build_workers, lambda _: None).run()

    assert list(long.iterdir()) == []


async def test_the_folder_of_a_server_is_locked_against_those_who_clean_up() -> None:
    tried: list[str] = []

    def build_workers(folder: Path) -> SharedWorkers:
        directory = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            tried.append("locked")
        finally:
            os.close(directory)
        raise ConfigError("enough")

    with pytest.raises(ConfigError, match="enough"):
        await Supervisor([], 2, "127.0.0.1", 0, build_workers, lambda _: None).run()

    assert tried == ["locked"]


def abandoned(parent: Path, name: str = "parley-0abc_xyz") -> Path:
    """Return a folder as a supervisor that was killed has left it."""
    folder = parent / name
    folder.mkdir(0o700)
    for file in ("board", "sphinx.streams"):
        (folder / file).touch()
    for path in ("0.sock", "sphinx-0.sock"):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(folder / path))
    return folder


async def test_a_server_that_starts_removes_what_killed_ones_have_left(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    left = abandoned(short_folder)
    seen: list[bool] = []

    def build_workers(folder: Path) -> SharedWorkers:
        seen.append(left.exists())
        raise ConfigError("enough")

    with pytest.raises(ConfigError, match="enough"):
        await Supervisor([], 2, "127.0.0.1", 0, build_workers, lambda _: None).run()

    assert seen == [False]


def test_the_folder_of_a_server_that_lives_stays(short_folder: Path) -> None:
    folder = abandoned(short_folder)
    directory = os.open(folder, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)

    remove_abandoned(short_folder)
    left = sorted(path.name for path in folder.iterdir())
    os.close(directory)
    remove_abandoned(short_folder)

    assert left == ["0.sock", "board", "sphinx-0.sock", "sphinx.streams"]
    assert not folder.exists()


def of_another_name(folder: Path) -> None:
    folder.rename(folder.with_name("parley-coffee"))


def with_another_file(folder: Path) -> None:
    (folder / "server.toml").touch()


def with_nothing_yet(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def open_to_others(folder: Path) -> None:
    folder.chmod(0o755)


def behind_a_link(folder: Path) -> None:
    folder.symlink_to(folder.rename(folder.with_name("elsewhere")))


@pytest.mark.parametrize(
    "change", [of_another_name, with_another_file, with_nothing_yet, open_to_others, behind_a_link]
)
def test_a_folder_that_is_not_clearly_ours_stays(change: Callable[[Path], None], short_folder: Path) -> None:
    change(abandoned(short_folder))
    before = sorted(path.name for path in short_folder.rglob("*"))

    remove_abandoned(short_folder)

    assert sorted(path.name for path in short_folder.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_stays(short_folder: Path) -> None:
    folder = abandoned(short_folder)
    os.chown(folder, 65534, 65534)

    remove_abandoned(short_folder)

    assert (folder / "board").exists()


def test_a_link_in_an_abandoned_folder_is_not_followed(short_folder: Path) -> None:
    kept = short_folder / "kept"
    kept.touch()
    folder = abandoned(short_folder)
    (folder / "1.sock").symlink_to(kept)

    remove_abandoned(short_folder)

    assert kept.exists()
    assert not folder.exists()
