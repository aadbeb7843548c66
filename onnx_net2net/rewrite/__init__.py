"""Makes a student from the chosen maps: its weights, sizes, norms, and the few nodes that it needs."""
