"""Benchmark of optimizer steps with and without clipping: ``fastclip bench --train``."""
