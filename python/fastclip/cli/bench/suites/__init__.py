"""Parts that every suite of benchmark rows needs: rows, targets and other libraries."""
