"""The weights of a checkpoint, without an engine, a model or the ranks that wrote it.

ZeRO 1 to 3 keep the optimizer's float32 weights in pieces, one file a rank, which DeepSpeed's own `zero_to_fp32` puts
together. Without ZeRO there is one file: its weights are those of the model, in low precision rounded ones, and the
optimizer's own lie in it without names (see `engine.MASTER_NAMES`).
"""

import io
import pickle
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from promptmeup.distributed.engine import MASTER_NAMES
from promptmeup.errors import CheckpointError

# behind engine.py, which says which accelerator there is
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # isort: skip

_UNSHARDED = "mp_rank_00_model_states.pt"


def read_checkpoint(folder: Path, tag: str) -> dict[str, Tensor]:
    """Return every parameter and buffer of folder/tag whole, on the CPU, floating ones in float32.

    Parameters are the optimizer's own, never the rounded copies of a run in bf16.

    Raises:
        CheckpointError: files are missing, damaged, or of another way of training.
    """
    place = folder / tag
    if not any(place.glob("*_model_states.pt")):
        raise CheckpointError(f"{place} holds no checkpoint (no *_model_states.pt); choose another one")
    try:
        if any(place.glob("*_optim_states.pt")):
            # it prints a page and draws bars
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found = dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag))
        else:
            found = _unsharded(place)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"cannot read the checkpoint {place}: {error}; copy the whole folder again, or choose another one"
        ) from error
    return {
        name: (value.float() if value.is_floating_point() else value).detach().contiguous()
        for name, value in found.items()
    }


def _unsharded(place: Path) -> dict[str, Tensor]:
    state = torch.load(place / _UNSHARDED, map_location="cpu", weights_only=True)
    found: dict[str, Tensor] = dict(state["module"])
    # a list of tensors a group, where the engine is of low precision
    masters = [value for group in state["optimizer"].get("fp32_groups", ()) for value in group]
    if masters and MASTER_NAMES not in state:
        raise CheckpointError(
            f"{place} was written by a version that did not say whose weights the optimizer has; start the run again "
            "with this version, which writes a checkpoint when it ends or is stopped"
        )
    found |= dict(zip(state.get(MASTER_NAMES, ()), masters, strict=True))
    return found
