"""Rows of ``fastclip bench --train``: clipping and an optimizer step together."""
