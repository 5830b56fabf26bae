"""Tables on the screen, the same in JSON, and the machine that gave them."""

import json
import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from media_server.caller.report import percentiles
from media_server.config import ROOT

FOLDER = ROOT / "build" / "bench"


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
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = {"title": title, "machine": _machine(), "rows": list(rows), **more}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)


def _pad(text: str, width: int, *, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
