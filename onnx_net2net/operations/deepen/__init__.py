"""More layers (Net2DeeperNet): inserts what computes the identity."""
