"""Exporting: a run's model -> a folder that transformers loads, with its card, and if wanted an MLflow model in it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import AutoModel

from promptmeup.config import Config
from promptmeup.errors import CheckpointError, ConfigError
from promptmeup.export.card import write_card
from promptmeup.export.facts import Facts, public, read_facts, steps_of
from promptmeup.export.pyfunc import INPUTS
from promptmeup.export.source import Source, find_source
from promptmeup.extraction.folder import load_finetuned, save_finetuned
from promptmeup.models.pretrained import AlignmentConfig, PretrainedAlignmentModel
from promptmeup.models.processor import save_processor
from promptmeup.models.saving import (
    describe,
    load_model,
    load_saved_tokenizer,
    read_description,
    state_fingerprint,
)
from promptmeup.models.weights import misfits, quiet_transformers, some
from promptmeup.shard_format import file_sha256, replace_folder, write_atomically, write_json
from promptmeup.tracking.mlflow_model import save_pyfunc
from promptmeup.tracking.provenance import versions

_INVENTORY = "export.json"
_REQUIREMENTS = ("promptmeup", "torch", "torchvision", "transformers", "timm")


class ExportConfig(Config):
    """What is exported, and to where."""

    run: Path
    """a pre-training or fine-tuning run, or best/ or model/ of one"""
    out: Path
    """folder for Hugging Face's files; one that an earlier export wrote is replaced"""
    checkpoint: str | None = None
    """of a pre-training run: best, model, latest, or a tag such as step-00000400; None: the first that is there"""
    mlflow_model: bool = False
    """write out/mlflow_model too, for mlflow.pyfunc.load_model; it holds a second copy of the weights"""
    name: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """what the card calls it and loads it by, such as USER/NAME on the hub; None: the folder's name"""
    license: str = "other"
    """of the weights, as the model hub spells it, such as apache-2.0; yours to decide, see the card's cautions"""
    datasets: tuple[str, ...] = ()
    """names on the model hub of what it was trained on, for the card"""


def export(config: ExportConfig) -> None:
    """Write the folder whole or not at all, and say how to upload it.

    Raises:
        ConfigError: no run there, or a folder that holds something else or cannot be written.
        CheckpointError, WeightsError: the weights are not there, damaged, or do not fit.
    """
    source = find_source(config.run.expanduser(), config.checkpoint)
    out = config.out.expanduser().resolve()
    _check_free(out)
    name = config.name or out.name
    staging = out.with_name(f".{out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        model = _write(config, source, name=name, staging=staging)
        _put_in_place(staging / "model", out)
    except OSError as error:
        raise ConfigError(
            f"cannot write out={config.out}: {error}; make room, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(
        f"exported {source.name} of {source.run} to {config.out}: {type(model).__name__}, "
        f"{_count(model) / 1e6:.1f} million parameters in float32, with their card in README.md"
    )
    if config.license == "other":
        print("look through the card before you publish it, and choose license=...")
    left_out = " --exclude 'mlflow_model/*'" if config.mlflow_model else ""
    repository = name if "/" in name else f"USER/{name}"
    print(f"upload it with: hf upload {repository} {config.out}{left_out}", flush=True)


def _write(config: ExportConfig, source: Source, *, name: str, staging: Path) -> Any:
    """Write all files into staging/model; return the model."""
    folder = staging / "model"
    facts = read_facts(source)
    model = _pretrained(source, facts, folder) if source.kind == "pretrained" else _finetuned(source, folder)
    _check(folder, model)
    card = write_card(
        model.config,
        facts,
        name=name,
        parameters=_count(model),
        license_=config.license,
        datasets=config.datasets,
    )
    write_atomically(folder / "README.md", card.encode())
    if config.mlflow_model:
        _add_pyfunc(folder, beside=staging / "mlflow_model")
    about = {"run": facts.run, "weights": facts.weights, "fingerprint": state_fingerprint(model)}
    write_json(folder / _INVENTORY, {**about, "files": _files(folder)})
    return model


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _pretrained(source: Source, facts: Facts, folder: Path) -> Any:
    """Write the model of a pre-training run; return it."""
    if source.is_checkpoint:
        description, state, tokenizer = _of_checkpoint(source)
    else:
        saved = load_model(source.weights)
        description, state = describe(saved), dict(saved.state_dict())
        tokenizer = load_saved_tokenizer(source.weights)
    try:
        data = source.config["data"]
        about = AlignmentConfig(
            alignment=public(description),
            eval_mode=data["image"]["eval_mode"],
            max_tokens=data["max_tokens"],
            source=_for_config(facts, steps_of(source)),
        )
        with quiet_transformers():
            model = PretrainedAlignmentModel(about)
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(
            f"{source.run} was trained with another version, whose settings do not fit ({error})"
        ) from error
    _load(model, {f"alignment.{name}": value for name, value in state.items()}, source)
    vision = model.alignment.vision
    with quiet_transformers():
        model.save_pretrained(folder)
        save_processor(
            folder,
            tokenizer,
            size=model.alignment.config.vision.image_size,
            eval_mode=about.eval_mode,
            mean=vision.mean,
            std=vision.std,
        )
    return model.eval()


def _of_checkpoint(source: Source) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """Return description, tensors and tokenizer; nothing of what training started from is read."""
    folder = source.run / "description"
    if not (folder / "model.json").exists():
        raise CheckpointError(
            f"{source.run} has no description/model.json, which says what model its checkpoints are of (older versions "
            "wrote none): start the run again with the same command, which writes it at once"
        )
    # importing DeepSpeed takes seconds, and no other export needs it
    from promptmeup.distributed.reading import read_checkpoint

    state = read_checkpoint(source.weights.parent, source.weights.name)
    return read_description(folder), state, load_saved_tokenizer(folder)


def _load(model: Any, state: Mapping[str, Tensor], source: Source) -> None:
    if wrong := misfits(model.state_dict(), state):
        raise CheckpointError(
            f"{source.weights} does not fit the model that {source.run} describes; missing, unknown or of another "
            f"shape: {some(wrong)}; model.* was changed between two starts: choose a later checkpoint"
        )
    model.load_state_dict(state)


def _finetuned(source: Source, folder: Path) -> Any:
    """Write a fine-tuned model again, without the paths in its configuration; return it."""
    loaded = load_finetuned(source.weights)
    config = loaded.model.config
    config.encoder, config.source = public(config.encoder), public(config.source)
    save_finetuned(folder, loaded.model, state=loaded.model.state_dict(), tokenizer=loaded.tokenizer)
    return loaded.model


def _for_config(facts: Facts, step: int | None) -> dict[str, Any]:
    return {
        "run": facts.run,
        "weights": facts.weights,
        "step": step,
        "data": [dict(row) for row in facts.data],
        "metrics": {metric.name: metric.value for metric in facts.metrics},
        "measured": facts.measured,
        "versions": facts.versions,
        "commit": facts.commit,
    }


def _check(folder: Path, model: Any) -> None:
    """Assert that what was written is read back bit by bit."""
    with quiet_transformers():
        again = AutoModel.from_pretrained(folder)
    assert type(again) is type(model)
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not different, f"not read back as written: {some(different)}"


def _add_pyfunc(folder: Path, *, beside: Path) -> None:
    """Write folder/mlflow_model; made at `beside` first, since it holds a copy of the folder."""
    found = versions()
    requirements = [f"{name}=={found[name]}" for name in _REQUIREMENTS if name in found]
    loader = "promptmeup.export.pyfunc"
    save_pyfunc(beside, loader=loader, data=folder, inputs=INPUTS, requirements=requirements)
    beside.rename(folder / "mlflow_model")


def _files(folder: Path) -> dict[str, str]:
    """Return SHA-256 by relative name, of all but the inventory."""
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _INVENTORY
    }


def _check_free(out: Path) -> None:
    """Refuse to replace anything but an earlier export as it was written.

    Raises:
        ConfigError: there is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        known = json.loads((out / _INVENTORY).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"out={out} holds something that no export wrote; choose another folder") from None
    found = _files(out)
    changed = sorted(name for name, digest in found.items() if known.get(name) != digest)
    if changed:
        raise ConfigError(
            f"out={out} is an export in which files were changed or added since: {some(changed)}; choose another "
            "folder, or delete it"
        )


def _put_in_place(new: Path, out: Path) -> None:
    """Give `new`, once it is on the disk, the name `out`."""
    readable = (new / "README.md").stat().st_mode  # safetensors writes files that nobody else may read
    for path in (*new.rglob("*"), new):
        if path.is_file():
            path.chmod(readable)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    replace_folder(out, new)
