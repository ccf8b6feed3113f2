"""A saved model is a folder that needs none of the original weights.

model.safetensors    every tensor of the state dict
model.json           configuration, architectures, widths and sizes of the prompt banks; written last
tokenizer/           the tokenizer's own files
"""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from promptmeup.errors import WeightsError
from promptmeup.models.alignment import AlignmentModel, ModelConfig
from promptmeup.models.text import bert_from_description
from promptmeup.models.vision import vision_from_description
from promptmeup.models.weights import misfits, quiet_transformers, some
from promptmeup.shard_format import write_json

_SCHEMA = 1


def save_model(
    folder: Path, model: AlignmentModel, *, tokenizer: Any, state: dict[str, Tensor] | None = None
) -> None:
    """Write the folder; call it on one rank. An older model in it is replaced.

    Args:
        folder: made if absent.
        model: gives the architecture, and the tensors if `state` is None.
        tokenizer: the transformers tokenizer that made its tokens.
        state: the whole state dict, where the model's own tensors are sharded (ZeRO-3) or of low precision.

    Raises:
        OSError: the disk is full, for one; an older model is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in (state or model.state_dict()).items()
    }
    temporary = folder / f".model.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)  # what was there stays, and half a file does not keep a disk full
        raise OSError(f"cannot write {folder / 'model.safetensors'}: {error}") from error
    (folder / "model.json").unlink(missing_ok=True)
    temporary.replace(folder / "model.safetensors")
    save_description(folder, model, tokenizer=tokenizer)


def save_description(folder: Path, model: AlignmentModel, *, tokenizer: Any) -> None:
    """Write the folder without the tensors: with those of a checkpoint it is the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "model.json", {"schema": _SCHEMA, **describe(model)})


def describe(model: AlignmentModel) -> dict[str, Any]:
    """Return JSON values from which `from_description` builds the model again, weights apart."""
    return {
        "config": model.config.model_dump(mode="json"),
        "entity_width": model.entity_width,
        "relation_width": model.relation_width,
        "num_entities": model.num_entities,
        "num_relations": model.num_relations,
        "bert": model.bert_description,
        "vision": model.vision.description,
    }


def from_description(description: dict[str, Any]) -> AlignmentModel:
    """Return the model with random weights; nothing of the original sources is read.

    Raises:
        ValidationError, KeyError: it describes no model of this version.
    """
    config = ModelConfig.model_validate_json(json.dumps(description["config"]), strict=True)
    return AlignmentModel(
        config,
        bert=bert_from_description(description["bert"]),
        vision=vision_from_description(config.vision, description["vision"]),
        entity_width=description["entity_width"],
        relation_width=description["relation_width"],
        # models with projections were saved without them
        num_entities=description.get("num_entities"),
        num_relations=description.get("num_relations"),
    )


def load_model(folder: Path) -> AlignmentModel:
    """Return the saved model, on the CPU, in float32 and in evaluation mode.

    Raises:
        WeightsError: no saved model there, another format version, or tensors that do not fit.
    """
    description = read_description(folder)
    try:
        model = from_description(description)
    except (ValidationError, KeyError) as error:
        raise WeightsError(
            f"{folder}/model.json does not describe a model of this version ({error}); train it again"
        ) from error
    state = _read_tensors(folder)
    if wrong := misfits(model.state_dict(), state):
        raise WeightsError(
            f"{folder}/model.safetensors does not fit its model.json; missing, unknown or of another shape: "
            f"{some(wrong)}; the two files come from different runs: save the model again"
        )
    model.load_state_dict(state)
    return model.eval()


def load_saved_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a saved model.

    Raises:
        WeightsError: it is not there.
    """
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(f"{folder} holds no readable tokenizer/ folder: {error}") from error


def load_matching(
    model: nn.Module, folder: Path, *, keep: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Copy the tensors of a saved model that `model` has under the same name and shape.

    A student starts from its teacher so: the halves are shared, its fusion and new heads are not.

    Args:
        keep: names of `model` that keep their values whatever the folder has.

    Returns:
        the names copied, and the names of `model` that keep their values.

    Raises:
        WeightsError: no saved model there, or nothing fits: temperatures and biases alone are nothing.
    """
    read_description(folder)
    state, own = _read_tensors(folder), model.state_dict()
    loaded = [
        name for name in own if name in state and state[name].shape == own[name].shape and name not in keep
    ]
    if not any(own[name].ndim > 1 for name in loaded):
        raise WeightsError(
            f"no tensor of {folder} fits this model (it has {some(sorted(own), limit=2)}; the folder has "
            f"{some(sorted(state), limit=2)}); start from a model with the same encoders"
        )
    model.load_state_dict({name: state[name] for name in loaded}, strict=False)
    return loaded, [name for name in own if name not in set(loaded)]


def state_fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits over the name, dtype, shape and bytes of every tensor of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def read_description(folder: Path) -> dict[str, Any]:
    """Return what `describe` gave of the model in `folder`, and the format's version.

    Raises:
        WeightsError: nothing there, or another format version.
    """
    path = folder / "model.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no saved model (no model.json); point to the model folder of a finished run"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if description.get("schema") != _SCHEMA:
        raise WeightsError(
            f"{path} has format version {description.get('schema')!r}, this program reads {_SCHEMA}; "
            "train the model again with this version"
        )
    return description


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {path}: {error}; copy the whole folder of the run again") from error
    return tensors
