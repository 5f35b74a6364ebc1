"""The public functions: arguments, defaults and documentation."""
