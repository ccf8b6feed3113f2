"""What is in a checkpoint, without an engine, a model or the ranks that wrote it.

ZeRO 1 to 3 keep the optimizer's float32 weights and moments in pieces, one file a rank, which the functions of
DeepSpeed's own `zero_to_fp32` put together. Without ZeRO there is one file: its weights are those of the model, in low
precision rounded ones, and what the optimizer has lies in it without names (see `engine.OPTIMIZER_NAMES`).
"""

import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptmeup.distributed.engine import OPTIMIZER_NAMES
from promptmeup.errors import CheckpointError

# behind engine.py, which says which accelerator there is
from deepspeed.utils import zero_to_fp32  # isort: skip

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by the names that torch and DeepSpeed give them"""
_UNSHARDED = "mp_rank_00_model_states.pt"


@dataclass(frozen=True)
class Whole:
    """A checkpoint put together, on the CPU."""

    weights: dict[str, Tensor]
    """every parameter and buffer, floating ones in float32: the optimizer's own, never rounded copies"""
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """name in MOMENTS -> trained parameter -> float32"""
    updates: float = 0
    """that the optimizer has made, of which Adam's bias correction depends"""


def read_checkpoint(folder: Path, tag: str) -> dict[str, Tensor]:
    """Return the weights of folder/tag; see `Whole`.

    Raises:
        CheckpointError: files are missing, damaged, or of another way of training.
    """
    return read_whole(folder, tag, moments=()).weights


def read_whole(folder: Path, tag: str, *, moments: tuple[str, ...] = MOMENTS) -> Whole:
    """Return the weights of folder/tag and the optimizer's `moments`.

    Raises:
        CheckpointError: files are missing, damaged, or of another way of training.
    """
    place = folder / tag
    if not any(place.glob("*_model_states.pt")):
        raise CheckpointError(f"{place} holds no checkpoint (no *_model_states.pt); choose another one")
    with _damage_told(place):
        if any(place.glob("*_optim_states.pt")):
            # it prints a page and draws bars
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found = _sharded(place, moments)
        else:
            found = _unsharded(place, moments)
        return Whole(
            {name: _plain(value) for name, value in found.weights.items()},
            {key: {n: _plain(v) for n, v in values.items()} for key, values in found.moments.items()},
            found.updates,
        )


def _plain(value: Tensor) -> Tensor:
    return (value.float() if value.is_floating_point() else value).detach().contiguous()


@contextmanager
def _damage_told(place: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        IndexError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {place}: {error}; copy the whole folder again, or choose another one"
        ) from error


def _sharded(place: Path, moments: tuple[str, ...]) -> Whole:
    model_states = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(place)))
    ranks = [
        # DeepSpeed pickles its own classes
        torch.load(file, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        for file in zero_to_fp32.get_optim_files(str(place))
    ]
    stage, size = ranks[0]["zero_stage"], ranks[0]["partition_count"]
    size = max(size) if isinstance(size, list) else size
    if size != len(ranks):
        raise ValueError(f"it was written by {size} ranks, and there are files of {len(ranks)}")
    groups_key, optimizer_key = (
        ("single_partition_of_fp32_groups", "base_optimizer_state")
        if stage <= 2
        else ("fp32_flat_groups", "optimizer_state_dict")
    )
    groups = [rank[groups_key] for rank in ranks]

    def joined(pieces: list[list[Tensor]]) -> dict[str, Any]:
        if stage <= 2:
            paddings = ranks[0].get("param_alignment_paddings")
            found = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint(
                size, pieces, model_states, False, paddings
            )
        else:
            found = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(size, pieces, model_states, False)
        return {name: value.contiguous() for name, value in found.items()}

    states = [rank[optimizer_key]["state"] for rank in ranks]
    trained = {name for shapes in model_states[0].param_shapes for name in shapes}
    found: dict[str, dict[str, Tensor]] = {}
    if moments and all(len(state) == len(own) for state, own in zip(states, groups, strict=True)):
        for key in moments:
            # one flat tensor a group, as the weights; those of ZeRO 1 and 2 are without the padding at the end
            pieces = [
                [state[i][key].flatten()[: len(weights)] for i, weights in enumerate(own)]
                for state, own in zip(states, groups, strict=True)
            ]
            found[key] = {name: value for name, value in joined(pieces).items() if name in trained}
    weights = joined(groups)
    if stage == 1:
        # frozen parameters, which DeepSpeed puts aside from stage 2 on
        module = torch.load(place / _UNSHARDED, map_location="cpu", mmap=True, weights_only=False)["module"]
        weights = {**module, **weights}
    return Whole(weights, found, float(states[0][0]["step"]) if found else 0)


def _unsharded(place: Path, moments: tuple[str, ...]) -> Whole:
    state = torch.load(place / _UNSHARDED, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = dict(state["module"])
    optimizer = state["optimizer"]
    names = state.get(OPTIMIZER_NAMES)
    if names is None:
        raise CheckpointError(
            f"{place} was written by a version that did not say whose weights the optimizer has; start the run again "
            "with this version, which writes a checkpoint when it ends or is stopped"
        )
    # a list of tensors a group, where the engine is of low precision
    masters = [value for group in optimizer.get("fp32_groups", ()) for value in group]
    if masters:
        weights |= dict(zip(names, masters, strict=True))
    states = optimizer.get("optimizer_state_dict", optimizer)["state"]
    found: dict[str, dict[str, Tensor]] = {}
    if moments and states:
        found = {
            key: {name: states[i][key] for i, name in enumerate(names) if i in states} for key in moments
        }
    updates = float(next(iter(states.values()))["step"]) if found else 0
    return Whole(weights, found, updates)
