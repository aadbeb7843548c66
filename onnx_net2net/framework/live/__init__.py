"""Grows what a training holds in memory: the user's module, its optimizer and its schedule."""
