"""What can be done to a model, one folder or module an operation."""
