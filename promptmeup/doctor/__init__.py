"""Before a run: does this machine, or do all nodes of this job, have what the run needs? One finding a check."""
