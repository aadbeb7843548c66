"""More units (Net2WiderNet): chooses sizes and maps for the dims, and rewrites the graph by them."""
