"""Hugging Face accelerate for fine-tuning: one process, several, or its DeepSpeed plugin, as its launcher says."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from promptmeup.distributed.world import World, announce, place, share_cores
from promptmeup.errors import CheckpointError


def join_accelerator(
    *, precision: Literal["auto", "fp32", "bf16"], batch: int, clipping: float, timeout: float = 1800
) -> tuple[Accelerator, World]:
    """Return the accelerator that the launcher's environment describes, and this process's place.

    Start with python, `accelerate launch` (with `--use_deepspeed --zero_stage 2`, for example), torchrun or srun.

    Args:
        precision: of forward and backward passes; auto: bf16 on a GPU, fp32 on a CPU.
        batch: rows of a rank and step, at most; DeepSpeed wants to know.
        clipping: largest norm of the gradient, 0 for none; likewise.
        timeout: seconds that processes wait for each other.

    Raises:
        ConfigError: the launcher's variables contradict each other.
    """
    rank, size, local_rank = place(os.environ)
    if size > 1:
        announce(rank, size, local_rank)
    has_gpu = torch.cuda.is_available()
    mixed = "bf16" if precision == "bf16" or (precision == "auto" and has_gpu) else "no"
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    meeting: dict[str, Any] = {"timeout": timedelta(seconds=timeout)}
    if with_deepspeed and not has_gpu:
        from promptmeup.distributed.engine import reduce_by_gloo

        reduce_by_gloo()
        # left to itself, accelerate's plugin finds no backend on a CPU and takes every rank for the only one
        meeting["backend"] = "gloo"
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=not has_gpu and not with_deepspeed,
        kwargs_handlers=[InitProcessGroupKwargs(**meeting)],
    )
    if accelerator.state.deepspeed_plugin is not None:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = -(-batch // size)
        settings["gradient_clipping"] = clipping
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
        settings["zero_allow_untested_optimizer"] = True
    world = World(rank, size, local_rank, accelerator.device)
    share_cores(world)
    unset_hf_deepspeed_config()
    return accelerator, world


def stage_of(accelerator: Accelerator) -> int:
    """Return the ZeRO stage of accelerate's DeepSpeed plugin, 0 without it."""
    plugin = accelerator.state.deepspeed_plugin
    return 0 if plugin is None else int(plugin.zero_stage)


def write_state(accelerator: Accelerator, wrapped: Any, folder: Path) -> None:
    """Write what `accelerator.load_state` reads. Collective.

    Raises:
        CheckpointError: this rank could not write its part. The others do not wait for it in vain.
    """
    failed: list[Exception] = []
    writer = getattr(wrapped, "checkpoint_engine", None)
    if writer is not None:
        from promptmeup.distributed.engine import failures_kept

        with failures_kept(writer, failed):
            accelerator.save_state(str(folder))
    else:
        try:
            accelerator.save_state(str(folder))
        # of safetensors and of torch's writer of zip files
        except (OSError, RuntimeError, SafetensorError) as error:
            failed.append(error)
    if failed:
        raise CheckpointError(f"cannot write to {folder}: {failed[0]}") from failed[0]


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Return model and optimizer wrapped for the world.

    Afterwards transformers is told to forget ZeRO-3, or every `from_pretrained` to come would make a sharded model.
    """
    prepared = accelerator.prepare(model, optimizer)
    unset_hf_deepspeed_config()
    wrapped, wrapped_optimizer = prepared
    return wrapped, wrapped_optimizer


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
