"""Soft labels on disk: every shard's two files, then the manifest.

Shards are labelled one by one and only files are written: any number of processes can share the work
without a word between them, and a shard that is finished stays finished.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptmeup.errors import ShardError
from promptmeup.prompts.labels import LabelConfig, StoredSample, label_shard
from promptmeup.prompts.quality import statistics
from promptmeup.prompts.teacher import Teacher
from promptmeup.prompts.vocabulary import Vocabulary
from promptmeup.records import Banks
from promptmeup.shard_format import (
    LabelManifest,
    ShardEntry,
    file_entries,
    label_dtype,
    label_file,
    write_array,
    write_label_manifest,
)


def _finished(path: Path, *, rows: int, kept: int) -> bool:
    try:
        labels = np.load(path)
    except (OSError, ValueError, EOFError):  # absent, or cut short by a file system that lied
        return False
    return bool(labels.dtype == label_dtype(kept)) and labels.shape == (rows,)


def write_labels(
    folder: Path,
    shards: Sequence[ShardEntry],
    read: Callable[[ShardEntry], Iterable[StoredSample]],
    teacher: Teacher,
    banks: Banks,
    config: LabelConfig,
    *,
    rank: int = 0,
    size: int = 1,
    done: Callable[[ShardEntry], None] | None = None,
) -> int:
    """Write the label files of the shards `rank`, `rank + size`, ... and return how many had to be labelled.

    Shards whose files are there with the right number of rows are left as they are. `done` is called after
    each shard, found or labelled. A shard's labels do not depend on `rank` and `size`.

    Raises:
        ShardError: a shard holds an image that cannot be decoded, or other numbers than its entry says.
    """
    kept = {
        "objects": min(config.num_kept, len(banks.entities_KD)),
        "images": min(config.num_kept, len(banks.relations_KD)),
    }
    labelled = 0
    folder.mkdir(parents=True, exist_ok=True)
    for entry in shards[rank::size]:
        rows = {"objects": entry.boxes, "images": entry.samples}
        paths = {kind: label_file(folder, entry.name, kind) for kind in rows}
        if not all(_finished(paths[kind], rows=rows[kind], kept=kept[kind]) for kind in rows):
            try:
                objects, images = label_shard(read(entry), teacher, banks, config)
            except ShardError as error:
                raise ShardError(f"{entry.name}: {error}") from error
            if (len(objects), len(images)) != (entry.boxes, entry.samples):
                raise ShardError(
                    f"{entry.name} holds {len(images)} images and {len(objects)} boxes, its manifest says "
                    f"{entry.samples} and {entry.boxes}: pack the split again"
                )
            write_array(paths["objects"], objects)
            write_array(paths["images"], images)
            labelled += 1
        if done is not None:
            done(entry)
    return labelled


LABEL_SUFFIXES = (".npy", ".safetensors")
"""of the labels and of the banks"""


def finish_labels(
    folder: Path,
    shards: Sequence[ShardEntry],
    vocabulary: Vocabulary,
    config: LabelConfig,
    *,
    corpus: str,
    made_with: dict[str, Any],
    further: Mapping[str, float] | None = None,
) -> LabelManifest:
    """Write and return the manifest with both kinds' statistics; call it when every process is done.

    Args:
        folder: named by the bank's fingerprint.
        corpus: fingerprint of the labelled split.
        further: statistics beyond those of the labels alone.

    Raises:
        ShardError: a shard has no labels yet.
    """
    names = {"objects": vocabulary.entities, "images": vocabulary.relations}
    found: dict[str, float] = {}
    for kind, prompts in names.items():
        paths = [label_file(folder, entry.name, kind) for entry in shards]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ShardError(
                f"{folder}: {len(missing)} of {len(paths)} shards have no labels yet "
                f"(the first is {missing[0]}); run launch/label.py again, it continues"
            )
        numbers = statistics((np.load(path) for path in paths), num_prompts=len(prompts))
        found |= {f"{kind}_{name}": value for name, value in numbers.items()}
    manifest = LabelManifest(
        bank=folder.name,
        corpus=corpus,
        num_kept=config.num_kept,
        entities=vocabulary.entities,
        relations=vocabulary.relations,
        made_with=made_with,
        statistics=found | dict(further or {}),
        files=file_entries(folder, sorted(p.name for p in folder.iterdir() if p.suffix in LABEL_SUFFIXES)),
    )
    write_label_manifest(folder, manifest)
    return manifest
