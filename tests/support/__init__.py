"""Modules shared by several tests: oracles, strategies, recorded data, fresh interpreters, tracing."""
