"""The libraries that differentiate a loss, one file each."""
