"""The optimizers: what they have in common, and one file for each."""
