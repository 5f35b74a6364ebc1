"""Recorders: programs that run TensorFlow and save its results as test data, and readers of that data."""
