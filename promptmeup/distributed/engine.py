"""DeepSpeed behind five functions: build an engine, read its weights, save it, load it.

Facts that shaped this file (DeepSpeed 0.19): a 0-dim parameter crashes `initialize`; `gradient_clipping`
defaults to 1.0, so it is always set; a bf16 engine does not cast its inputs (see `compute_dtype`).
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from promptmeup.config import Config
from promptmeup.distributed.memory import Stage, bucket_of
from promptmeup.distributed.world import World
from promptmeup.errors import CheckpointError, ConfigError, NotFiniteError

# DeepSpeed probes the accelerator at import and prints a warning where it finds none: say it ourselves.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# Its autotuner, which nobody here uses, imports mlflow if it can: a quarter of the time until a rank is there.
if "mlflow" not in sys.modules:
    sys.modules["mlflow"] = None  # type: ignore[assignment]
import deepspeed
from deepspeed.utils import safe_get_full_fp32_param

if sys.modules.get("mlflow", True) is None:  # the entry from above
    del sys.modules["mlflow"]

OPTIMIZER_NAMES = "optimizer_names"
"""in a checkpoint without ZeRO: whose is what the optimizer has, in its own order, which has no names"""


class EngineConfig(Config):
    """How parameters, gradients and optimizer state are kept over the ranks."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """ZeRO: 0 nothing sharded, 1 optimizer state, 2 gradients too, 3 parameters too; auto: 0 for a rank alone in fp32,
    else 1"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU and for models with batch normalisation"""
    compile: bool = False
    """compile the transformer layers (torch.compile): minutes at the start, needs a C++ compiler, not at ZeRO 3"""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """selective: keep what products of matrices and attention give, compute norms, GELU and dropout again; full: keep
    each layer's input alone, for one more forward pass of the layers; at ZeRO 3 full alone"""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """largest norm of the gradient; 0 switches clipping off"""
    timeout: float = Field(default=1800.0, gt=0)
    """seconds that a rank waits for the others, and that a step, an evaluation or a checkpoint may take; a run in which
    one rank hangs ends after it, saying which"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile does not go with zero_stage 3, which swaps parameters while a layer runs: take zero_stage 2"
            )
        if self.activation_checkpointing == "selective" and self.zero_stage == 3:
            raise ValueError(
                "selective activation_checkpointing does not go with zero_stage 3, under which its gradients are not "
                "exactly those without it: take full, or zero_stage 2"
            )
        return self

    def stage(self, *, ranks: int, dtype: torch.dtype) -> Stage:
        """Return the stage of a run: alone in fp32, sharding would only copy what it does not divide."""
        if self.zero_stage != "auto":
            return self.zero_stage
        return 0 if ranks == 1 and dtype is torch.float32 else 1


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


def layout(*, zero_stage: int, ranks: int, dtype: torch.dtype) -> str:
    """Return how a checkpoint's files are cut: only an engine of the same layout reads them as they are."""
    precision = str(dtype).removeprefix("torch.")
    return f"ZeRO {zero_stage} on {ranks} ranks, {precision}" if zero_stage else f"no ZeRO, {precision}"


def build_engine(
    model: nn.Module, *, optimizer: torch.optim.Optimizer, config: EngineConfig, batch: int, world: World
) -> Any:
    """Return the DeepSpeed engine that owns `model` and `optimizer`; `batch` is the rows per rank and step."""
    assert all(p.ndim > 0 for p in model.parameters()), "0-dim parameters crash DeepSpeed: use shape [1]"
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if world.device.type == "cpu":
        reduce_by_gloo()
    dtype = compute_dtype(config, model, world.device)
    stage = config.stage(ranks=world.size, dtype=dtype)
    guarded = stage == 0 and dtype is torch.float32
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.gradient_clipping or (math.inf if guarded else 0.0),
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket_of(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype is torch.bfloat16},
    }
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    if guarded:
        engine.clip_fp32_gradients = partial(_clip, engine)
    if stage == 0 and world.size == 1:
        engine.enable_backward_allreduce = False  # it would copy all gradients twice
    return engine


def _clip(engine: Any) -> None:
    """Clip the gradients in place, and note their norm, as the stages of ZeRO do and DeepSpeed without it does not.

    Raises:
        NotFiniteError: their norm is not finite; they are as they were.
    """
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if not norm.isfinite():
        raise NotFiniteError("the gradient is not finite")
    torch.nn.utils.clip_grads_with_norm_(parameters, engine.gradient_clipping(), norm)
    engine._global_grad_norm = norm


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
    unsharded = {id(low): high for low, high in unsharded_masters(engine)}
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


def unsharded_masters(engine: Any) -> list[tuple[nn.Parameter, Tensor]]:
    """Return (parameter, the optimizer's float32 copy) of an engine of low precision without ZeRO, [] of others."""
    groups = zip(
        getattr(engine.optimizer, "fp16_groups", ()),
        getattr(engine.optimizer, "fp32_groups", ()),
        strict=False,
    )
    return [pair for lows, highs in groups for pair in zip(lows, highs, strict=True)]


def skip_update(engine: Any) -> None:
    """Forget the gradients of the last backward pass, as DeepSpeed does when float16 overflows, and update nothing.

    Collective, after `engine.backward`.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        optimizer.zero_grad(set_to_none=True)
        engine.zero_grad()
        return

    def overflowed(*_: object, **__: object) -> None:
        optimizer.overflow = True

    replaced: dict[str, object] = {"_overflow_check_and_loss_scale_update": overflowed}
    if stage < 3:
        replaced = {"check_overflow": overflowed, "check_grad_overflow": True}
    before = {name: vars(optimizer)[name] for name in replaced if name in vars(optimizer)}
    vars(optimizer).update(replaced)
    try:
        engine.step()
    finally:
        for name in replaced:
            del vars(optimizer)[name]
        vars(optimizer).update(before)
        optimizer.overflow = False


def update(engine: Any) -> None:
    """Update the parameters with the gradients of the last backward pass. Collective.

    Raises:
        NotFiniteError: on every rank, the gradient is not finite, and nothing is updated (not looked for in bf16
            without ZeRO).
    """
    try:
        engine.step()
    except NotFiniteError:
        skip_update(engine)
        raise
    if not engine.was_step_applied():
        raise NotFiniteError("the gradient is not finite")


def save_engine(engine: Any, *, folder: Path, tag: str) -> None:
    """Write the engine's state into folder/tag; every rank writes its part and returns when all are done.

    Raises:
        CheckpointError: this rank could not write its part. The others do not wait for it in vain.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    engine._copy_recovery_script = lambda _: None  # a script beside every checkpoint; `export` does its work
    failed: list[Exception] = []
    with failures_kept(engine.checkpoint_engine, failed):
        ours = {OPTIMIZER_NAMES: _optimizer_names(engine)}
        engine.save_checkpoint(str(folder), tag=tag, client_state=ours, save_latest=False)
    if failed:
        error = failed[0]
        why = error.strerror if isinstance(error, OSError) else "most likely the disk or a quota is full"
        raise CheckpointError(f"cannot write to {folder / tag} ({why})") from error


@contextmanager
def failures_kept(writer: Any, failed: list[Exception]) -> Iterator[None]:
    """Note errors of writing instead of raising them: DeepSpeed has barriers behind them, where others would wait."""

    def guarded(action: Callable[..., Any]) -> Callable[..., None]:
        def act(*arguments: Any, **named: Any) -> None:
            if not failed:
                try:
                    action(*arguments, **named)
                # torch's writer of zip files has no class of its own for a full disk
                except (OSError, RuntimeError) as error:
                    failed.append(error)

        return act

    writer.save, writer.makedirs = guarded(writer.save), guarded(writer.makedirs)
    try:
        yield
    finally:
        del writer.save, writer.makedirs


def _optimizer_names(engine: Any) -> list[str]:
    """Return the names of the optimizer's parameters in its order, without ZeRO; [] with it."""
    if engine.zero_optimization_stage() > 0:
        return []
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    lows = [low for low, _ in unsharded_masters(engine)]
    own = lows or [p for group in engine.optimizer.param_groups for p in group["params"]]
    return [names[id(parameter)] for parameter in own]


_CONSTANTS = ("weight_decay", "betas", "eps")
"""of AdamW's groups; rates are set at each step"""
_DOES_NOT_FIT = ("state_dict", "The size of tensor", "alignment")
"""in messages of torch and DeepSpeed about tensors of another model, or in other groups"""


def load_engine(engine: Any, *, folder: Path, tag: str) -> None:
    """Restore model and optimizer from folder/tag, in place; what is set now stays: weight decay, betas, eps, clipping.

    Raises:
        CheckpointError: files are missing or do not fit this model or number of ranks.
    """
    set_now = [{name: group[name] for name in _CONSTANTS} for group in _groups(engine)]
    clipping = getattr(engine.optimizer, "clip_grad", None)
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=tag)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _DOES_NOT_FIT):
            raise  # another rank has gone, for one: nothing is wrong with the checkpoint
        raise CheckpointError(
            f"cannot load the checkpoint {folder / tag}: {error}; restore the model's settings that it was written "
            "with, or choose another out= to begin again"
        ) from error
    if path is None:
        raise CheckpointError(
            f"the checkpoint {folder / tag} is incomplete; delete it to go on from an older one"
        )
    for group, constants in zip(_groups(engine), set_now, strict=True):
        group.update(constants)
    if clipping is not None:
        engine.optimizer.clip_grad = clipping


def _groups(engine: Any) -> list[dict[str, Any]]:
    groups = engine.optimizer.param_groups
    return [group for group in groups if group.keys() >= set(_CONSTANTS)]
