"""Parley: a server that people talk to."""
