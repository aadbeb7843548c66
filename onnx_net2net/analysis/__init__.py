"""What a graph means: the dims of every tensor, layers, blocks, roles, and the constants that can weigh copies."""
