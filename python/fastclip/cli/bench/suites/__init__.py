"""Parts common to the suites of benchmark rows: row and suite types, targets, and the other libraries."""
