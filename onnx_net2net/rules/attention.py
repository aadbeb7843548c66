"""Attention as one operator: heads, and the widths of queries, keys and values, are dims."""
