"""Measurements of time and memory, and of the state of the machine."""
