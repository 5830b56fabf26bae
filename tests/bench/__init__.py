"""Benchmarks: one script a question. Each prints one table and writes JSON into build/bench/."""
