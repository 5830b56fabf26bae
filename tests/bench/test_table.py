"""The machine that gave the figures is named, whatever it is; the figures are also there as JSON."""

import json
import platform
from pathlib import Path

import pytest

from tests.bench import table
from tests.bench.table import built_with, machine, machine_line, row, show


def test_linux_names_the_model_of_the_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast One 9: 3 GHz\n\nprocessor\t: 1\nmodel name\t: Fast One 9\n")

    assert machine(cpuinfo)["cpu"] == "Fast One 9: 3 GHz"


def test_a_machine_without_the_files_of_linux_is_named_by_what_python_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_os_release() -> dict[str, str]:
        raise OSError("/etc/os-release: no such file")

    monkeypatch.setattr(platform, "freedesktop_os_release", no_os_release)
    monkeypatch.setattr(platform, "processor", lambda: "arm")

    mac = machine(tmp_path / "missing")

    assert mac["cpu"] == "arm"
    assert mac["distribution"] == ""
    assert f"GiB; {platform.platform()}; Python" in machine_line(mac)


def test_the_line_says_how_python_was_made() -> None:
    plain = {**machine(), "python": "3.11.2", "python_built_with": [], "compiler": "GCC 12"}

    assert "Python 3.11.2 (--enable-optimizations not named, GCC 12)" in machine_line(plain)
    assert "(--enable-optimizations --with-lto, GCC 12)" in machine_line(
        {**plain, "python_built_with": ["--enable-optimizations", "--with-lto"]}
    )


@pytest.mark.parametrize(
    ("configure_args", "options"),
    [
        ("'--enable-optimizations' '--with-lto=full'", ["--enable-optimizations", "--with-lto"]),
        ("'--enable-shared' '--without-lto'", []),
        ("", []),
    ],
)
def test_only_options_that_make_python_faster_are_named(configure_args: str, options: list[str]) -> None:
    assert built_with(configure_args) == options


def test_a_figure_that_is_not_there_is_null_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)

    path = show("figures", "Figures", [row("none", [])], samples=[{"at_s": 1.0, "ratio": float("inf")}])

    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["rows"] == [{"": "none", "n": 0, "p50": None, "p95": None, "p99": None, "target": ""}]
    assert written["samples"] == [{"at_s": 1.0, "ratio": None}]
