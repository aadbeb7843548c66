"""Dims, maps, and how a weight follows: arithmetic on numpy arrays that knows nothing of ONNX."""
