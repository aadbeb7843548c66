"""A model file: the graph without weights, weights that are read on demand, and the record of what was done."""
