"""The way back into training: state dicts, the state of optimizers, the user's own class, its sizes."""
