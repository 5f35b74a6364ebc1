"""Results of the benchmark: tables, plot and targets."""
