"""Fewer units and layers: removes duplicates, and what has no effect."""
