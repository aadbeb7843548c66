"""What examples tell a transfer that is not exact: which units to keep, and what layers are fitted to."""
