"""Quantized weights and activations: the scale carries the division, or nothing does."""
