"""What a pre-training run reads: corpora, soft labels and their prompts, and what is told of them."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from promptmeup.data.opening import fetch_labels, open_split
from promptmeup.data.reader import LabelReader, PackedSplit
from promptmeup.data.sources import Sources, shares_of
from promptmeup.distributed.world import World
from promptmeup.errors import ConfigError
from promptmeup.models.alignment import AlignmentModel
from promptmeup.models.saving import save_description
from promptmeup.prompts.bank import load_banks
from promptmeup.records import Banks
from promptmeup.shard_format import finished_labels, labels_folder, read_manifest, write_json
from promptmeup.tracking.settings import TrackedDataset
from promptmeup.training.settings import PretrainConfig


def choose_labels(split: Path, name: str | None) -> Path:
    """Return the folder of soft labels to train on: the one named, else the only finished one of this corpus.

    Raises:
        ConfigError: none, or several to choose from.
    """
    corpus = read_manifest(split).fingerprint
    found = finished_labels(split, corpus=corpus)
    names = [path.name for path in found]
    if name is not None and name not in names:
        raise ConfigError(
            f"data.labels = {name}: {split} has no finished labels of that name; "
            f"{'it has ' + ', '.join(names) if names else 'run launch/label.py'}"
        )
    if not found:
        finished = len(finished_labels(split))
        old = f" ({finished} of what it was before its boxes or entities were replaced)" if finished else ""
        raise ConfigError(
            f"{split} has no soft labels{old}: run launch/label.py first, or switch the losses off that need "
            "them with loss.weights.object_entity=0 loss.weights.image_relation=0"
        )
    if name is None and len(found) > 1:
        raise ConfigError(
            f"{split} has {len(found)} sets of soft labels ({', '.join(names)}): choose one with data.labels=NAME"
        )
    return labels_folder(split, name) if name is not None else found[0]


def open_sources(config: PretrainConfig, world: World) -> tuple[Sources, Banks | None]:
    """Open the corpora of a run, with their soft labels and the banks of these where a loss needs them."""
    data = config.data
    splits = [open_split(path, data.cache) for path in data.training]
    readers, banks = None, None
    if config.needs_labels:
        fetch_labels(splits[0], data.labels)
        folders = [choose_labels(splits[0].folder, data.labels)]
        bank = folders[0].name.rsplit("-", 1)[0]
        for split in splits[1:]:
            name = f"{bank}-{split.manifest.fingerprint[:8]}"
            fetch_labels(split, name)
            folders.append(choose_labels(split.folder, name))
        found = load_banks(folders[0], corpus=splits[0].manifest.fingerprint)
        banks = Banks(found.entities_KD.to(world.device), found.relations_KD.to(world.device))
        readers = tuple(LabelReader(folder, split) for folder, split in zip(folders, splits, strict=True))
    shares = shares_of([part.share for part in data.blend])
    return Sources(tuple(splits), shares, config.seed, data.window, data.pairs, readers), banks


def untrainable_matching(config: PretrainConfig, sources: Sources) -> str | None:
    """Return what is wrong where matching is trained without a single pair that does not match, else None."""
    manifests = [split.manifest for split in sources.splits]
    has_others = config.data.pairs != "matched" and any(m.matched_pairs < m.pairs for m in manifests)
    if config.loss.weights.matching == 0 or has_others or config.data.mismatched > 0:
        return None
    return (
        "every pair that is trained on matches, so the matching loss learns to say yes to all: data.mismatched=0.5 "
        "shows half of them with the caption of another photo; or leave it out with loss.weights.matching=0"
    )


def write_description(
    folder: Path, *, model: AlignmentModel, tokenizer: Any, sources: Sources, val: PackedSplit | None
) -> None:
    """Write at the start what makes a model of any checkpoint, without the encoders' first weights and the data."""
    save_description(folder, model, tokenizer=tokenizer)
    splits = [*sources.splits, *([val] if val else [])]
    facts = [
        {
            "name": dataset.name,
            "fingerprint": dataset.digest,
            "use": dataset.context,
            "photos": split.manifest.samples,
            "pairs": split.manifest.pairs,
            "labels": reader.manifest.bank if reader else None,
        }
        for dataset, split, reader in zip_longest(datasets(sources.splits, val), splits, sources.labels or ())
    ]
    write_json(folder / "data.json", facts)


def galleries(splits: Sequence[PackedSplit]) -> list[Path]:
    """Return the pages of shards/gallery.py that lie in or beside the splits."""
    folders = [folder for split in splits for folder in (split.folder, split.folder.parent)]
    return [path for folder in dict.fromkeys(folders) if (path := folder / "gallery.html").is_file()]


def datasets(training: Sequence[PackedSplit], val: PackedSplit | None) -> list[TrackedDataset]:
    splits = [(split, "training") for split in training] + ([(val, "validation")] if val else [])
    return [
        TrackedDataset(
            name="/".join(packed.location.split("/")[-2:]),
            digest=packed.manifest.fingerprint,
            source=packed.location,
            context=context,
        )
        for packed, context in splits
    ]
