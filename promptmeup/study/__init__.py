"""The experiments: controlled errors, grids of runs that share what they can, and what they show."""
