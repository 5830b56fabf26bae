"""A peer's server is a process of its own, and one that does not start says why."""

from pathlib import Path

import pytest

from media_server.errors import PeerGoneError
from tests.bench.peers.__main__ import PEERS, run
from tests.bench.peers.peer import Peer


def peer(script: Path) -> Peer:
    return Peer(name="Some", package="aiortc", script=str(script), path="/offer")


async def test_a_server_that_answers_is_given_with_the_path_of_its_offers(tmp_path: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import http.server, sys\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()\n"
    )

    async with peer(script).serving() as url:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/offer")


async def test_a_server_that_ends_at_once_is_gone_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "end.py"
    script.write_text("raise SystemExit('no such thing\\n')")

    with pytest.raises(PeerGoneError, match="ended at once with status 1: no such thing"):
        async with peer(script).serving():
            pass


async def test_what_is_not_installed_is_gone(tmp_path: Path) -> None:
    with pytest.raises(PeerGoneError, match="PackageNotFoundError"):
        await peer(tmp_path).version("no-such-package")


def test_every_requirement_is_pinned_and_every_script_is_there() -> None:
    for name, each in PEERS.items():
        assert all("==" in requirement for requirement in each.requirements), name
        assert Path(run.__code__.co_filename).with_name(each.script).exists(), name
