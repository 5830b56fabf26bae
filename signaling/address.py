"""Where we listen, in words."""

from media_server.errors import AddressError


def url_of(host: str, port: int) -> str:
    """Return the address of our front door as a browser takes it."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def cannot_listen(host: str, port: int, error: OSError) -> AddressError:
    """Return the error that says why we cannot listen there, and what would be right."""
    why = (error.strerror or str(error)).rpartition(": ")[2].lower()
    return AddressError(f"cannot listen on {host}:{port}: {why}; wanted a free --port on a --host of ours")
