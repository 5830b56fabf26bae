"""Parley's tests: the same tree once more."""
