"""Undifferentiated bodies of the public functions: each turns arguments into one call of `_core`."""
