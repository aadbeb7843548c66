"""Grows checkpoints of transformers, of timm and of the user's classes shard by shard, without loading them."""
