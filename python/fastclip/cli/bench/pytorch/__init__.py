"""Rows of ``fastclip bench --torch``: clip functions and optimizers of PyTorch and of `fastclip.torch`."""
