"""A server for a test or a benchmark, with some knobs turned."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from media_server.caller.demo import running_server
from media_server.config import ROOT

FOLDER = ROOT / "build"


@asynccontextmanager
async def server(toml: str = "[call]\ngreeting = false\n") -> AsyncGenerator[str, None]:
    """Run a server with some knobs turned, in one process unless they say how many; give its address."""
    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        path = Path(folder) / "server.toml"
        path.write_text(toml, encoding="utf-8")
        async with running_server(path, workers=None if "workers" in toml else 1) as url:
            yield url


def talkative_scenario() -> Path:
    """Return a scenario like the shipped one whose greeting goes on for half a minute, to be interrupted."""
    shipped = (ROOT / "config" / "scenarios" / "coffee.toml").read_text(encoding="utf-8")
    lines = shipped.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("greeting ="))
    story = (
        "Let me tell you about our beans, which come from a small farm high up in the mountains where the nights are "
        "cold and the days are warm and the harvest goes on for many weeks of every year. "
    )
    lines[at] = f'greeting = "{story * 4}"'
    path = FOLDER / "talkative.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def media_processes(url: str) -> dict[int, int]:
    """Return the media processes that listen there: place to pid."""
    port = url.rpartition(":")[2]
    found = {}
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if "--place" in command and f",{port}," in (place := command[command.index("--place") + 1]):
            found[int(place.partition(",")[0])] = process.pid
    return found
