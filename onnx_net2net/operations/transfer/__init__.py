"""Fills the user's own network, the target, from a trained one."""
