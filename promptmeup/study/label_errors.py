"""Errors of the teacher, made on purpose in soft labels: rows of them change places, none is lost."""

from dataclasses import replace
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from promptmeup.config import Config
from promptmeup.errors import ConfigError, ShardError
from promptmeup.prompts.quality import statistics
from promptmeup.shard_format import (
    Manifest,
    file_entries,
    finished_labels,
    label_file,
    labels_folder,
    read_label_manifest,
    read_manifest,
    replace_folder,
    text_id,
    write_array,
    write_label_manifest,
)


class LabelErrorsConfig(Config):
    """Whose labels are shuffled, and how many of them."""

    split: Path
    """folder of a packed split with one finished set of soft labels"""
    rate: float = Field(default=0.0, ge=0, le=1)
    """share of the rows, of objects and of images"""
    seed: int = 0


def shuffle_labels(config: LabelErrorsConfig) -> None:
    """Put a shuffled set of soft labels in the place of a split's only one; what is so shuffled already stays.

    Its files are new ones, so that hard links to those of the old set keep what they hold. It is named as `label`
    names a set, of a bank "BANK-shuffled-RATE-SEED": splits that are trained on together are shuffled alike.

    Raises:
        ShardError: no packed split, or its labels are not as their manifest says.
        ConfigError: the split has no finished labels, or several sets.
    """
    if config.rate == 0:
        return
    split = read_manifest(config.split)
    corpus, shuffled = f"-{split.fingerprint[:8]}", f"-shuffled-{config.rate}-{config.seed}"
    for made in finished_labels(config.split, corpus=split.fingerprint):
        if made.name.endswith(shuffled + corpus):  # an earlier call was killed when all but this was done
            of = read_label_manifest(made).made_with["shuffled"]["of"]
            rmtree(made.with_name(of), ignore_errors=True)
    old = _only_labels(config.split, corpus=split.fingerprint)
    name = old.name.removesuffix(corpus).removesuffix(shuffled) + shuffled + corpus
    if name == old.name:
        return
    with TemporaryDirectory(prefix=".labels.", dir=config.split) as temporary:
        new = Path(temporary) / name
        new.mkdir()
        _write(new, old, split, config)
        replace_folder(labels_folder(config.split, name), new)
    rmtree(old)


def _only_labels(split: Path, *, corpus: str) -> Path:
    found = finished_labels(split, corpus=corpus)
    if not found:
        raise ConfigError(f"{split} has no finished soft labels to shuffle: run launch/label.py first")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(
            f"{split} has {len(found)} sets of soft labels ({names}): remove the folders in {split / 'labels'} "
            "but the one to shuffle"
        )
    return found[0]


def _write(new: Path, old: Path, split: Manifest, config: LabelErrorsConfig) -> None:
    manifest = read_label_manifest(old)
    files = [entry.name for entry in manifest.files]
    if file_entries(old, files) != manifest.files:
        raise ShardError(
            f"{old}: files are missing or changed: remove that folder and run launch/label.py again"
        )
    found: dict[str, float] = {}
    for kind, prompts in (("objects", manifest.entities), ("images", manifest.relations)):
        names = [label_file(old, entry.name, kind).name for entry in split.shards]
        parts = [np.load(old / name) for name in names]
        labels_N = _shuffled(np.concatenate(parts), config, kind)
        ends = np.cumsum([len(part) for part in parts])
        for name, part in zip(names, np.split(labels_N, ends[:-1]), strict=True):
            write_array(new / name, part)
        numbers = statistics([labels_N], num_prompts=len(prompts))
        found |= {f"{kind}_{name}": value for name, value in numbers.items()}
    for name in files:
        if not (new / name).exists():  # the banks
            copyfile(old / name, new / name)
    shuffled = replace(
        manifest,
        bank=new.name,
        made_with=manifest.made_with
        | {"shuffled": {"of": old.name, "rate": config.rate, "seed": config.seed}},
        statistics=found,  # without the agreement with captions, which no longer holds
        files=file_entries(new, files),
    )
    write_label_manifest(new, shuffled)


def _shuffled(labels_N: NDArray[Any], config: LabelErrorsConfig, kind: str) -> NDArray[Any]:
    """Return the labels, a share of which went round in one random circle; a larger share has a wider one."""
    rng = np.random.default_rng(int(text_id(f"{config.seed}/{kind}"), 16))
    chosen = rng.permutation(len(labels_N))[: round(config.rate * len(labels_N))]
    result = labels_N.copy()
    result[chosen] = labels_N[np.roll(chosen, -1)]
    return result
