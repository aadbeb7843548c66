"""Growth of what a training holds in memory: a module of the user's own, its optimizer, its schedule."""
