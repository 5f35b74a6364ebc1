"""Measurements of times, memory and the machine."""
