"""The way back into training: state dicts, states of optimizers, the user's own class and its sizes."""
