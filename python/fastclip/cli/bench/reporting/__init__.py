"""Results of a benchmark run, and their output as tables, JSON and a plot."""
