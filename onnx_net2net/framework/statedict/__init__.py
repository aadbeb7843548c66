"""The entries of a state dict: which constants of a graph they are, and what becomes of them in a student."""
