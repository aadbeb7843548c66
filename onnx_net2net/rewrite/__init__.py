"""From maps to a student: weights, sizes, norms and the few nodes that a map needs."""
