"""What a graph means: the dims of every tensor, layers, blocks, roles, and who weighs the copies of a sum."""
