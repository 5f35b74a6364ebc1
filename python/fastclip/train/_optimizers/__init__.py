"""The optimizers of `fastclip.train`, one in each file. Their update rules are in `src/operations/rules/`."""
