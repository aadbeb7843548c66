"""Indexing, searching and the rest of ai.onnx: most axes stay fixed, others pass."""
