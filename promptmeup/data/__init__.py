"""Packed shards -> batches: the order, random access, augmentation, tokens, collation, workers."""
