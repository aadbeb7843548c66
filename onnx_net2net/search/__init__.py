"""Many networks, each grown from another one and trained by the user's own command: chains and searches."""
