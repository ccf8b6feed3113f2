"""A checkpoint for another number of ranks, or another ZeRO stage, than it was written by.

Rank 0 reads it whole and sends it around, tensor by tensor, so nothing is converted on the disk. DeepSpeed's universal
checkpoints (0.19) do less: their reader leaves buffers as they are (batch normalisation), gives all groups the first
one's weight decay at stage 3, finds no number of updates when a stage 2 becomes a 3, and knows no stage 0.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from promptmeup.distributed.engine import unsharded_masters
from promptmeup.distributed.reading import MOMENTS, Whole
from promptmeup.distributed.world import World, broadcast_object
from promptmeup.errors import CheckpointError

from deepspeed.utils import (  # isort: skip
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)


def give_weights(whole: Whole | None, model: nn.Module, *, world: World) -> None:
    """Fill the model's parameters and buffers on every rank, before it gets an engine. Collective.

    Args:
        whole: on rank 0; None elsewhere.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    own = {name: tuple(value.shape) for name, value in whole.weights.items()} if whole else None
    found = broadcast_object(own, world)
    wrong = sorted(name for name in shapes if found is None or found.get(name) != shapes[name])
    if wrong:
        raise CheckpointError(
            f"the checkpoint is of another model: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} differ; "
            "restore the model's settings, or choose another out= to begin again"
        )
    for name, value in state.items():
        _receive(whole.weights[name] if whole else None, into=value.data, world=world)


def give_optimizer(whole: Whole | None, engine: Any, *, world: World) -> None:
    """Fill the optimizer of a new engine with its float32 weights and moments, on every rank. Collective.

    Args:
        whole: on rank 0; None elsewhere.
    """
    updates, keys = broadcast_object((whole.updates, tuple(whole.moments)) if whole else (0.0, ()), world)
    masters = _prepare(engine, updates) if keys else _masters(engine)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        buffer = torch.empty(shape, dtype=torch.float32, device=world.device)
        _receive(whole.weights[name] if whole else None, into=buffer, world=world)
        _set(engine, parameter, masters.get(id(parameter)), buffer, key=None, rank=world.rank)
        for key in keys:
            _receive(whole.moments[key][name] if whole else None, into=buffer, world=world)
            _set(engine, parameter, masters.get(id(parameter)), buffer, key=key, rank=world.rank)


def _set(
    engine: Any, parameter: Any, master: Tensor | None, value: Tensor, *, key: str | None, rank: int
) -> None:
    """Give the optimizer's copy of a parameter (`key` None), or a moment of it, its value."""
    if master is not None:
        own = master.data if key is None else _base(engine).state[master][key]
        own.copy_(value)
    elif engine.zero_optimization_stage() < 3:
        if key is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
    else:
        # DeepSpeed's function for whole values runs over the end on the last rank, where parts are padded
        length = parameter.ds_tensor.numel()
        padded = value.new_zeros((rank + 1) * length)
        padded[: min(value.numel(), len(padded))] = value.flatten()[: len(padded)]
        part = padded[rank * length :]
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)


def _receive(value: Tensor | None, *, into: Tensor, world: World) -> None:
    """Fill `into` with rank 0's `value`."""
    if value is not None:
        into.copy_(value)
    if world.size > 1:
        dist.broadcast(into, src=0)


def _base(engine: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer, which DeepSpeed's may wrap."""
    wrapper = engine.optimizer
    base: torch.optim.Optimizer = wrapper if isinstance(wrapper, torch.optim.Optimizer) else wrapper.optimizer
    return base


def _masters(engine: Any) -> dict[int, Tensor]:
    """Return id of a parameter -> what the optimizer updates, without ZeRO; {} with it."""
    if engine.zero_optimization_stage() > 0:
        return {}
    found = {id(low): high for low, high in unsharded_masters(engine)}
    # in float32 the parameters themselves
    return found or {id(p): p for group in _base(engine).param_groups for p in group["params"]}


def _prepare(engine: Any, updates: float) -> dict[int, Tensor]:
    """Make the state that AdamW would make in its first step; return what `_masters` does."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    masters = _masters(engine)
    updated: list[Tensor] = list(masters.values())
    if stage > 0:
        updated = (
            optimizer.fp32_partitioned_groups_flat
            if stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
    base = _base(engine)
    is_fused = any(group.get("fused") or group.get("capturable") for group in base.param_groups)
    for value in updated:
        step = torch.tensor(updates, dtype=torch.float32, device=value.device if is_fused else "cpu")
        base.state[value] = {"step": step, **{key: torch.zeros_like(value.data) for key in MOMENTS}}
    if stage in (1, 2):
        optimizer._lazy_init_hp_params_optimizer_state()
    return masters
