"""Other libraries that read training data, each behind the same three verbs: write, read, open."""
