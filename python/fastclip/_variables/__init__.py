"""Variables, and the collections that they join."""
