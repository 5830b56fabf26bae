"""The other side: how to call a server."""
