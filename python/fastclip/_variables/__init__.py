"""Variables, and the collections that list them."""
