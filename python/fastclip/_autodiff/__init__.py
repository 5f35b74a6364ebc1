"""Automatic differentiation: gradients of losses, and derivatives of the clip functions."""
