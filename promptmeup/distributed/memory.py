"""What DeepSpeed (0.19) keeps on a rank at each ZeRO stage, and what a checkpoint takes on disk.

P parameters of w bytes each (4 in fp32, 2 in bf16), N ranks, a bucket of C numbers (`reduce_bucket_size`):

    stage   parameters               optimizer            gradients       at the update, in their place
    0       w P                      8 P, in bf16 12 P    w P             w P + 4 P, in fp32 w P + the sum's buffer
    1, 2    w P                      12 P / N             w C             (w + 4) P / N
    3       w P / N, and gathered    12 P / N             w P / N + w C   (w + 4) P / N + w C
            w P if N > 1

Read in its source and counted in real engines (tests/unit/training/test_memory.py). What one would not expect: stages
1 to 3 keep float32 masters in fp32 too; the bucket is there in full however small the model is, so it is made no larger
than the model; the gradients lie in it, so that stage 2 saves nothing over 1 unless they fill it; stage 3 gathers what
it needs and, in models of less than a billion parameters, lets nothing go between the forward and the backward pass.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)

BUCKET = 500_000_000
"""most numbers in the buffer that gradients are summed over the ranks from, DeepSpeed's own choice for any model"""


def bucket_of(parameters: int) -> int:
    """Return the numbers in that buffer: as many as there are gradients."""
    return max(1, min(BUCKET, parameters))


@dataclass(frozen=True)
class StateMemory:
    """Bytes on one rank, activations apart."""

    parameters: int
    optimizer: int
    gradients: int
    """during the backward pass"""
    update: int
    """during the update, in the place of `gradients`"""

    def peak(self, activations: int) -> int:
        """Return the most at any time: at the end of the forward pass and in the backward one, or in the update."""
        return self.parameters + self.optimizer + max(self.gradients + activations, self.update)


def state_memory(parameters: int, *, stage: Stage, ranks: int, dtype: torch.dtype) -> StateMemory:
    """Return what a rank keeps of a model with as many `parameters`, all of them trained by AdamW."""
    width, own = dtype.itemsize, -(-parameters // ranks)
    if stage == 0:
        masters = 0 if dtype is torch.float32 else 4 * parameters
        summed = width * bucket_of(parameters) if ranks > 1 else 0
        gradients = width * parameters
        return StateMemory(
            gradients, 8 * parameters + masters, gradients, update=gradients + max(masters, summed)
        )
    update = (width + 4) * own
    bucket = width * bucket_of(parameters)
    if stage < 3:
        return StateMemory(width * parameters, 12 * own, bucket, update)
    gathered = width * parameters if ranks > 1 else 0
    return StateMemory(width * own + gathered, 12 * own, width * own + bucket, update + bucket)


def checkpoint_bytes(parameters: int, *, stage: Stage, dtype: torch.dtype) -> int:
    """Return what all ranks write: parameters (not at stage 3), float32 masters where there are, AdamW's state."""
    masters = 0 if stage == 0 and dtype is torch.float32 else 4
    return parameters * ((dtype.itemsize if stage < 3 else 0) + masters + 8)
