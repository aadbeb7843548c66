"""Dims, maps, and how weights grow by them: arithmetic on numpy arrays, without ONNX."""
