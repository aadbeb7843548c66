"""Operators of com.microsoft that optimizers emit."""
