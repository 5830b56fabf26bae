"""The front door: HTTP, tokens, limits, processes, and how the house is put together."""
