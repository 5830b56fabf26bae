"""What the caller's commands are told on the command line, checked."""

import argparse
import math
import os
from pathlib import Path
from urllib.parse import urlsplit


def server_url(text: str) -> str:
    """Return the address of a server."""
    try:
        parts = urlsplit(text)
        # IDNA refuses a host that DNS cannot carry; the port is not looked at before it is asked for.
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a server: {error}") from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a server: wanted http://HOST[:PORT]")
    return text


def new_file(text: str) -> Path:
    """Return the path of a file that can be written: found out before the call, not after it."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: wanted a file in a folder that is there")
    return path


def seconds(text: str) -> float:
    """Return a time above 0."""
    found = _number(text)
    if not found > 0:
        raise argparse.ArgumentTypeError(f"wanted a number of seconds above 0, found {text!r}")
    return found


def count(text: str) -> int:
    """Return a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number of 1 or more, found {text!r}")
    return int(text)


def amount(text: str) -> float:
    """Return a number of 0 or more."""
    found = _number(text)
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"wanted a number of 0 or more, found {text!r}")
    return found


def share(text: str) -> float:
    """Return a share, 0 to less than 1."""
    found = _number(text)
    if not 0 <= found < 1:
        raise argparse.ArgumentTypeError(f"wanted a share, 0 to 1, found {text!r}")
    return found


def _number(text: str) -> float:
    """Return a finite number; NaN if it is none."""
    try:
        found = float(text)
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan
