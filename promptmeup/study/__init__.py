"""Studies: grids of arms and seeds, what they are made of and what they show."""
