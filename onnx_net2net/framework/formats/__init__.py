"""Files of state dicts: reading and writing those of PyTorch, safetensors, Keras and Flax."""
