"""Conversion of arguments: containers to flat lists, array-likes to arrays, numbers to floats."""
