"""Checkpoints of transformers: grown shard by shard, without ever being loaded."""
