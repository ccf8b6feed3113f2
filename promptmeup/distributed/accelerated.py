"""Hugging Face accelerate for fine-tuning: one process, several, or its DeepSpeed plugin, as its launcher says."""

import os
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from promptmeup.distributed.world import World, place, share_cores


def join_accelerator(
    *, precision: Literal["auto", "fp32", "bf16"], batch: int, clipping: float
) -> tuple[Accelerator, World]:
    """Return the accelerator that the launcher's environment describes, and this process's place.

    Start with python, `accelerate launch` (with `--use_deepspeed --zero_stage 2`, for example), torchrun or srun.

    Args:
        precision: of forward and backward passes; auto: bf16 on a GPU, fp32 on a CPU.
        batch: rows of a rank and step, at most; DeepSpeed wants to know.
        clipping: largest norm of the gradient, 0 for none; likewise.

    Raises:
        ConfigError: the launcher's variables contradict each other.
    """
    rank, size, local_rank = place(os.environ)
    if size > 1:
        for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
            os.environ.setdefault(name, str(value))
    has_gpu = torch.cuda.is_available()
    mixed = "bf16" if precision == "bf16" or (precision == "auto" and has_gpu) else "no"
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    accelerator = Accelerator(mixed_precision=mixed, cpu=not has_gpu and not with_deepspeed)
    if accelerator.state.deepspeed_plugin is not None:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = -(-batch // size)
        settings["gradient_clipping"] = clipping
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
        settings["zero_allow_untested_optimizer"] = True
    world = World(rank, size, local_rank, accelerator.device)
    share_cores(world)
    return accelerator, world


def whole_weights(accelerator: Accelerator, wrapped: nn.Module, *, world: World) -> dict[str, Tensor]:
    """Return every parameter and buffer in float32 on the CPU, on rank 0; {} on the others. Collective."""
    engine: Any = wrapped
    if hasattr(engine, "zero_optimization_stage"):
        from promptmeup.distributed.engine import full_weights

        return full_weights(engine, world=world)
    if world.rank != 0:
        return {}
    state = accelerator.unwrap_model(wrapped).state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
