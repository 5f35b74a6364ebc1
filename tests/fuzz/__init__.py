"""Fuzzers, which are run as modules: `tests/fuzz/README.md` says how."""
