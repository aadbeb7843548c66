"""Runs models in onnxruntime, and finds inputs that they accept."""
