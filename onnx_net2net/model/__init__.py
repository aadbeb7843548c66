"""A model file: a graph without weights, bytes that are read when somebody asks, and the record of what was done."""
