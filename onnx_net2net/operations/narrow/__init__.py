"""Fewer units and layers: removes what a network has twice, or for nothing."""
