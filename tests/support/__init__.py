"""What several tests use: oracles, strategies, and the recorders of other libraries' results."""
