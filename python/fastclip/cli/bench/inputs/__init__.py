"""Shapes and numbers of the gradients and variables that the benchmark uses."""
