"""The memory: SQL and Redis."""
