"""What can be done to a model: one folder or module for each operation."""
