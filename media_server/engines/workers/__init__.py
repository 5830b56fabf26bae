"""Model workers: processes for libraries that hold the GIL, and the pool that engines use them through."""
