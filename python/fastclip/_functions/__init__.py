"""Public functions: signatures, defaults and documentation."""
