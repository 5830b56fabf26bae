"""Model workers, with real processes."""
