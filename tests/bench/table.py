"""Tables on the screen, the same in JSON, and the machine that gave them."""

import json
import math
import os
import platform
import sysconfig
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from media_server.caller.report import percentiles
from media_server.config import ROOT

FOLDER = ROOT / "build" / "bench"
CPUINFO = Path("/proc/cpuinfo")


def row(name: str, values: Sequence[float], target: str = "") -> dict[str, Any]:
    """Return a row of percentiles; NaN if there are no values."""
    return {"": name, "n": len(values), **percentiles(values or [math.nan]), "target": target}


def show(name: str, title: str, rows: Sequence[dict[str, Any]], **more: Any) -> Path:
    """Print a table and write it, with `more`, to build/bench/NAME.json; return that path."""
    columns = list(rows[0])
    cells = [[_cell(each[column]) for column in columns] for each in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
    print(f"\n{title}")
    for line in [columns, *cells]:
        print("  " + "  ".join(_pad(text, widths[at], left=at == 0) for at, text in enumerate(line)).rstrip())
    where = machine()
    print(f"  {machine_line(where)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = _plain({"title": title, "machine": where, "rows": list(rows), **more})
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Return `value` with None in place of numbers that JSON has no word for (RFC 8259 section 6)."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Return what the figures depend on: processor, memory, system, and how this Python was made."""
    return {
        "cpu": _cpu(cpuinfo),
        "hardware_threads": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "python_built_with": built_with(sysconfig.get_config_var("CONFIG_ARGS") or ""),
        "compiler": platform.python_compiler(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def built_with(configure_args: str) -> list[str]:
    """Return the options that make a faster Python. Debian's is made with profiles too, but does not say so here."""
    return [option for option in ("--enable-optimizations", "--with-lto") if option in configure_args]


def machine_line(of: Mapping[str, Any]) -> str:
    """Return what `machine` gives in one line."""
    system = ", ".join(text for text in (of["distribution"], of["system"]) if text)
    options = " ".join(of["python_built_with"]) or "--enable-optimizations not named"
    return (
        f"on {of['cpu']}, {of['hardware_threads']} hardware threads, {of['memory_gib']:g} GiB; "
        f"{system}; Python {of['python']} ({options}, {of['compiler']}); {of['at']}"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)


def _pad(text: str, width: int, *, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _cpu(cpuinfo: Path) -> str:
    """Return the model, or the kind of processor where `cpuinfo` does not name it: macOS, and Linux on ARM."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:  # macOS has none; `system` names it
        return ""
