"""Fuzzing: what the far end may send, made wrong in a million ways, into a call that must live on."""
