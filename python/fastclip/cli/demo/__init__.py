"""``fastclip demo``: training with and without clipping."""
