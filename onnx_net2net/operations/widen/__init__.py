"""More units (Net2WiderNet): chooses sizes and maps, and has them carried out."""
