"""Improves a transfer that is not exact by examples: chooses the units to keep, and fits the layers."""
