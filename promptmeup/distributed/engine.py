"""DeepSpeed behind five functions: build an engine, read its weights, save it, load it.

Facts that shaped this file (DeepSpeed 0.19): a 0-dim parameter crashes `initialize`; `gradient_clipping`
defaults to 1.0, so it is always set; a bf16 engine does not cast its inputs (see `compute_dtype`).
"""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from promptmeup.config import Config
from promptmeup.distributed.world import World
from promptmeup.errors import CheckpointError, ConfigError

# DeepSpeed probes the accelerator at import and prints a warning where it finds none: say it ourselves.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param

MASTER_NAMES = "master_names"
"""in a checkpoint without ZeRO and of low precision: whose are the optimizer's float32 groups, which have no names"""


class EngineConfig(Config):
    """How parameters, gradients and optimizer state are kept over the ranks."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO: 0 nothing sharded, 1 optimizer state, 2 gradients too, 3 parameters too"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU and for models with batch normalisation"""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """largest norm of the gradient; 0 switches clipping off"""


def compute_dtype(config: EngineConfig, model: nn.Module, device: torch.device) -> torch.dtype:
    """Return the type of the parameters in forward; floating inputs must be cast to it.

    DeepSpeed (0.19) casts parameters to bf16 and leaves buffers in float32; batch normalisation with its statistics in
    one and its weights in the other fails at the first step.

    Raises:
        ConfigError: bf16 was asked for, and the model has batch normalisation.
    """
    has_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if has_norm and config.precision == "bf16":
        raise ConfigError(
            "engine.precision = bf16 does not go with batch normalisation, which this vision encoder has: set "
            "engine.precision=fp32, or choose a ViT or a ConvNeXt"
        )
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and not has_norm else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def build_engine(
    model: nn.Module, *, optimizer: torch.optim.Optimizer, config: EngineConfig, batch: int, world: World
) -> Any:
    """Return the DeepSpeed engine that owns `model` and `optimizer`; `batch` is the rows per rank and step."""
    assert all(p.ndim > 0 for p in model.parameters()), "0-dim parameters crash DeepSpeed: use shape [1]"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if world.device.type == "cpu":
        reduce_by_gloo()
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": compute_dtype(config, model, world.device) is torch.bfloat16},
    }
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def reduce_by_gloo() -> None:
    """Keep DeepSpeed on a CPU from compiling a shared-memory all-reduce with g++ at its first use.

    That takes a minute and a compiler that a fresh machine lacks, and sums in another order than gloo.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def one_reduction(engine: Any) -> AbstractContextManager[None]:
    """Return a context in which several calls of `engine.backward` belong to one step; `engine.step()` comes after it.

    Without it ZeRO 1 and 2 keep the last call's gradients only, in silence: 70 % of the update is wrong then.
    Stage 0 adds up by itself.
    """
    context: AbstractContextManager[None] = nullcontext()
    if engine.zero_optimization_stage() > 0:
        context = engine.coalesce_grad_reduction()
    return context


def full_weights(engine: Any, *, world: World) -> dict[str, Tensor]:
    """Return every parameter and buffer whole, in fp32 on the CPU, on rank 0; {} on the others.

    Those of a bf16 engine are the optimizer's own, not the rounded copies that the forward pass uses.
    Collective: call it on every rank.
    """
    weights: dict[str, Tensor] = {}
    # without ZeRO, DeepSpeed's own accessor below does not find them
    unsharded = {id(low): high for low, high in _unsharded_masters(engine)}
    for name, parameter in engine.module.named_parameters():
        whole = None
        if parameter.dtype is not torch.float32:
            # None where it is frozen
            whole = unsharded.get(id(parameter), safe_get_full_fp32_param(parameter))
        # a no-op where the parameter is not sharded
        is_sharded = whole is None and hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded):
            if world.rank == 0:
                value = parameter.detach() if whole is None else whole
                weights[name] = value.to("cpu", torch.float32, copy=True)
    if world.rank == 0:
        for name, buffer in engine.module.named_buffers():
            if name in engine.module.state_dict():
                weights[name] = buffer.detach().to("cpu", copy=True)
    return weights


def _unsharded_masters(engine: Any) -> list[tuple[nn.Parameter, Tensor]]:
    """Return (parameter, the optimizer's float32 copy) of an engine of low precision without ZeRO, [] of others."""
    groups = zip(
        getattr(engine.optimizer, "fp16_groups", ()),
        getattr(engine.optimizer, "fp32_groups", ()),
        strict=False,
    )
    return [pair for lows, highs in groups for pair in zip(lows, highs, strict=True)]


def save_engine(engine: Any, *, folder: Path, tag: str) -> None:
    """Write the engine's state into folder/tag; every rank writes its part and returns when all are done."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    masters = [names[id(low)] for low, _ in _unsharded_masters(engine)]
    ours = {MASTER_NAMES: masters} if masters else {}
    engine.save_checkpoint(str(folder), tag=tag, client_state=ours, save_latest=False)


def load_engine(engine: Any, *, folder: Path, tag: str) -> None:
    """Restore model and optimizer from folder/tag, in place.

    Raises:
        CheckpointError: files are missing or do not fit this model or number of ranks.
    """
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=tag)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"cannot load the checkpoint {folder / tag}: {error}; delete it to go on from an older one"
        ) from error
    if path is None:
        raise CheckpointError(
            f"the checkpoint {folder / tag} is incomplete; delete it to go on from an older one"
        )
