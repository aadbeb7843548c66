"""Checkpoints of transformers, timm and other classes: grown shard by shard, without ever being loaded."""
