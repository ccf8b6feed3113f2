"""A packed corpus as one HTML page, to be looked at before a GPU is spent on it."""
