"""Rows of ``fastclip bench --cliffs``: shapes and types for which a fast library easily becomes slow."""
