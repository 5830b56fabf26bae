"""The shape of the house: who imports whom, who starts tasks, whose clock is read, and that every knob is explained.

All is read from the source with `ast`; nothing is imported.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from media_server.config import DEFAULT_FILE, ROOT, Config, known_names

# A part may import from itself and from lower floors. Parts of one floor never meet, but on the ground.
FLOORS = {
    "media_server.audio": 0,
    "media_server.events": 0,
    "media_server.conversation": 0,
    "media_server.errors": 0,
    "media_server.config": 0,
    "media_server.metrics": 0,
    "media_server.event_loop": 0,
    "media_server.transport": 1,
    "media_server.engines": 1,
    "media_server.dialogue": 1,
    "media_server.protocol": 1,
    "media_server.session": 2,
    "media_server.caller": 2,
    "signaling": 3,
}

# Tasks are started in session/, caller/ and signaling/app.py; and here, each for the reason beside it.
STARTS_TASKS = {
    "media_server.engines.build": "the children of `run` and `load`, which signaling/app.py starts and awaits",
    "signaling.supervisor": "another program: it has processes, and the tasks that keep them",
    "signaling.neighbours": "gathers answers, within a request",
    "signaling.proxy": "the two ways of a WebSocket, within a request",
    "media_server.engines.asr_whisper": "gathers futures of its threads, no tasks",
    "media_server.transport.webrtc.aiortc_private": "the RTCP reader of aiortc's receiver; its stop() awaits it",
}
MAY_START = ("media_server.session.", "media_server.caller.", "signaling.app")
STARTERS = {"create_task", "ensure_future", "TaskGroup", "gather", "run_coroutine_threadsafe"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the house."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        """Return the key of FLOORS that this file belongs to."""
        return part_of(self.name)


def part_of(name: str) -> str:
    """Return the part that a module belongs to; the longest that fits."""
    fitting = [part for part in FLOORS if name == part or name.startswith(part + ".")]
    assert fitting, f"{name} stands on no floor; give it one in FLOORS and in ARCHITECTURE.md"
    return max(fitting, key=len)


@cache
def sources() -> tuple[Source, ...]:
    """Return every file of the house, `__init__.py` left out."""
    paths = [path for top in ("media_server", "signaling") for path in sorted((ROOT / top).rglob("*.py"))]
    return tuple(
        Source(".".join(path.relative_to(ROOT).with_suffix("").parts), path, ast.parse(path.read_text("utf-8")))
        for path in paths
        if path.name != "__init__.py"
    )


def imported(source: Source) -> Iterator[str]:
    """Yield the modules of the house that a file imports, wherever in it the import stands."""
    modules = {each.name for each in sources()}
    for node in ast.walk(source.tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module, `from module import thing` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] in {"media_server", "signaling"})


def called(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything that is called."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_imports_run_downward() -> None:
    wrong = [
        f"{source.name} -> {name}"
        for source in sources()
        for name in imported(source)
        if part_of(name) != source.part
        and FLOORS[part_of(name)] >= FLOORS[source.part]
        and not FLOORS[part_of(name)] == FLOORS[source.part] == 0
    ]

    assert wrong == []


def test_no_file_imports_itself_by_a_detour() -> None:
    graph = {source.name: sorted(set(imported(source))) for source in sources()}
    done: set[str] = set()

    def circle(name: str, way: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in way:
            return (*way[way.index(name) :], name)
        if name in done:
            return None
        found = next((found for each in graph.get(name, []) if (found := circle(each, (*way, name)))), None)
        done.add(name)
        return found

    assert [found for name in graph if (found := circle(name, ()))] == []


def test_no_import_hides_from_the_interpreter() -> None:
    for source in sources():
        for node in ast.walk(source.tree):
            assert not (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"), source.name
            assert not (isinstance(node, ast.ImportFrom) and node.level), source.name


def test_a_package_holds_a_docstring_and_nothing_else() -> None:
    tops = ("media_server", "signaling", "tests")
    for path in (path for top in tops for path in (ROOT / top).rglob("__init__.py")):
        tree = ast.parse(path.read_text("utf-8"))

        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


def test_every_file_says_what_it_is_for() -> None:
    assert [source.name for source in sources() if not ast.get_docstring(source.tree)] == []


def test_tasks_are_started_where_somebody_waits_for_them() -> None:
    starts = [
        f"{source.name}:{line} {name}"
        for source in sources()
        if not source.name.startswith(MAY_START) and source.name not in STARTS_TASKS
        for line, name in called(source)
        if name.split(".")[-1] in STARTERS
    ]

    assert starts == []


def test_every_exception_for_tasks_is_needed() -> None:
    starting = {source.name for source in sources() for _, name in called(source) if name.split(".")[-1] in STARTERS}

    assert set(STARTS_TASKS) - starting == set()


def test_nobody_sleeps_on_a_thread_or_reads_a_clock_that_jumps() -> None:
    calls = [
        f"{source.name}:{line} {name}"
        for source in sources()
        for line, name in called(source)
        if name in {"time.time", "time.sleep"}
    ]
    hidden = [
        f"{source.name}: {alias.name}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
        if alias.name in {"time", "sleep"}
    ]

    assert calls + hidden == []


def test_no_except_swallows_cancellation() -> None:
    for source in sources():
        for node in ast.walk(source.tree):
            # Who cleans up and raises again has swallowed nothing.
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
                caught = ast.unparse(node.type) if node.type else "everything"
                swallows = re.search(r"everything|BaseException|CancelledError", caught)
                assert not swallows, f"{source.name}:{node.lineno} {caught}"


def test_what_is_served_and_read_at_run_time_is_in_the_wheel() -> None:
    packaging = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    shipped = {
        f"{folder}/{path.name}": path.relative_to(ROOT).as_posix()
        for folder, patterns in packaging.get("data-files", {}).items()
        for pattern in patterns
        for path in ROOT.glob(pattern)
    }
    needed = [path for top in ("config", "static") for path in (ROOT / top).rglob("*") if path.is_file()]

    assert shipped == {f"share/parley/{name}": name for name in (path.relative_to(ROOT).as_posix() for path in needed)}


# --- the configuration -----------------------------------------------------------------------------------------------


def test_every_knob_stands_in_the_shipped_file_and_no_other() -> None:
    document = tomllib.loads(DEFAULT_FILE.read_text("utf-8"))

    shipped = [f"{section}.{name}" for section, table in document.items() for name in table]

    assert shipped == list(known_names())


def test_every_knob_has_its_reason_beside_it() -> None:
    """A name that says it all, such as `port`, needs none; those are listed, so that a new one is a decision."""
    without_reason = [
        line.partition(" =")[0]
        for line in DEFAULT_FILE.read_text("utf-8").splitlines()
        if re.match(r"[a-z_]+ = ", line) and not re.search(r"\S\s+# \S", line)
    ]

    assert set(without_reason) <= {
        "port",
        "instructions",
        "apology",
        "language",
        "whisper_device",
        "whisper_compute_type",
    }


def test_every_knob_is_read_by_somebody() -> None:
    read = {name for source in sources() for name in knobs_read(source)}

    assert set(known_names()) - read == set()


def knobs_read(source: Source) -> Iterator[str]:
    """Yield each `section.name` that a file reads: off `....section`, or off a name that holds a section."""
    classes = {field.annotation.__name__: name for name, field in Config.model_fields.items() if field.annotation}
    nodes = list(ast.walk(source.tree))
    held = {
        (node.arg, classes[ast.unparse(node.annotation)])
        for node in nodes
        if isinstance(node, ast.arg) and node.annotation and ast.unparse(node.annotation) in classes
    }

    def sections(value: ast.expr) -> set[str]:
        if isinstance(value, ast.Attribute) and value.attr in Config.model_fields:
            return {value.attr}
        return {section for holder, section in held if holder == ast.unparse(value)}

    for node in nodes:
        if isinstance(node, ast.Assign):
            held |= {(ast.unparse(target), section) for target in node.targets for section in sections(node.value)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield from (f"{section}.{node.attr}" for section in sections(node.value))
