"""The mind: who may speak, when a turn ends, what was heard. No clocks, no I/O."""
