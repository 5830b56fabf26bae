"""The mind, without a clock."""
