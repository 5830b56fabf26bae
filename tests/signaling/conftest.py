"""What tests of the front door share."""

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Generator[Path, None, None]:
    """Give a folder whose name leaves room for the names of sockets; pytest's own may be too long."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        yield Path(name)
