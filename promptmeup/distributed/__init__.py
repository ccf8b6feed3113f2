"""Everything that more than one process takes part in; the only package that names torch.distributed
or deepspeed."""
