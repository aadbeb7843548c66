"""A file as a trainable module of PyTorch: which constants are parameters, and operators for onnx2fx."""
