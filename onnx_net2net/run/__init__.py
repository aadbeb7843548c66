"""Models run in onnxruntime, on inputs that they accept."""
