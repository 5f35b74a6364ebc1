"""Benchmark of clipping: ``fastclip bench``."""
