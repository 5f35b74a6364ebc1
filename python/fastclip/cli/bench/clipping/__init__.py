"""Rows of ``fastclip bench``: clipping by fastclip and by other libraries."""
