"""What the public functions do when nothing is differentiated: one call of the compiled part each."""
