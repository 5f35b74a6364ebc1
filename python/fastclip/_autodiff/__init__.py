"""Differentiation: of losses by the libraries that do it, and of the clip functions inside a loss."""
