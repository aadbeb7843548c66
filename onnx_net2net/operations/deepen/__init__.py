"""More layers (Net2DeeperNet): inserts layers that compute the identity."""
