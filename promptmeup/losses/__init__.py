"""Pure functions from tensors to `records.Term` (sum over valid rows, number of them).

Nothing here knows that it is distributed: gathered rows come in as tensors, and one function
(promptmeup.distributed.collectives.world_means) turns the sums of all ranks into world means.
"""
