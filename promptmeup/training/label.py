"""A labelling run: teacher, banks, soft labels of every shard, shared over processes by files alone."""

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from promptmeup.data.reader import PackedSplit
from promptmeup.distributed.world import announce, place
from promptmeup.errors import ShardError
from promptmeup.packing.entities import names_in
from promptmeup.progress import progress
from promptmeup.prompts.bank import bank_fingerprint, build_banks, save_banks
from promptmeup.prompts.label_files import finish_labels, write_labels
from promptmeup.prompts.labels import LabelConfig, StoredSample, label_temperature
from promptmeup.prompts.quality import AGREEMENT_AT, agreement, dominance_warning
from promptmeup.prompts.vocabulary import Vocabulary, read_vocabulary
from promptmeup.records import Span
from promptmeup.shard_format import ShardEntry, label_dtype, label_file, labels_folder, read_manifest
from promptmeup.training.teacher import open_teacher
from promptmeup.training.too_small import writing

AGREEMENT_SAMPLES = 20_000
_PATIENCE = timedelta(hours=12)
_SHARDS_STAY = "labels lie beside the shards, and those that are finished stay"


class LabelRunConfig(LabelConfig):
    """What is labelled, and by whom."""

    teacher: str = Field(min_length=1)
    """model folder of a dual encoder, such as runs/teacher/model; or a CLIP or SigLIP: a local directory, or
    a hub name such as openai/clip-vit-base-patch32"""
    device: str = "auto"
    """auto: a GPU where there is one"""


def label(config: LabelRunConfig) -> None:
    """Label every split of `config`; shards that are labelled already stay."""
    from accelerate import PartialState

    rank, size, local_rank = place(os.environ)
    if size > 1:
        announce(rank, size, local_rank)  # srun says it in other words
    # the ranks wait for each other only at the end of a split, and their shares may differ by hours
    processes = PartialState(cpu=config.device == "cpu", timeout=_PATIENCE)
    device = processes.device if config.device == "auto" else torch.device(config.device)
    is_main = processes.is_main_process
    for folder in config.splits:
        _refuse_unfinished(folder)
        _insist_on_room(folder)
    teacher = open_teacher(config.teacher, device=device)
    vocabulary = read_vocabulary(config.bank.vocabulary, entities=config.splits[0] / "entities.tsv")
    banks = build_banks(vocabulary, teacher.encode_texts, batch=config.bank.batch)
    temperature = label_temperature(config, teacher)
    name = bank_fingerprint(
        teacher.fingerprint,
        vocabulary,
        temperature=temperature,
        num_kept=config.num_kept,
        crop_padding=config.crop_padding,
    )
    if is_main:
        print(
            f"{len(vocabulary.entities)} entities, {len(vocabulary.relations)} relations, temperature "
            f"{temperature:.4f}: labels {name}",
            flush=True,
        )
    for folder in config.splits:
        split = PackedSplit(folder)
        # boxes may be replaced: labels of other boxes must not be taken for finished ones
        target = labels_folder(folder, f"{name}-{split.manifest.fingerprint[:8]}")
        share = split.manifest.shards[processes.process_index :: processes.num_processes]
        bar = iter(progress(share, total=len(share), what=f"label {folder}", unit="shards"))
        next(bar, None)
        with writing(target, error=ShardError, stays=_SHARDS_STAY):
            write_labels(
                target,
                split.manifest.shards,
                lambda entry, split=split: stored_samples(split, entry),  # type: ignore[misc]
                teacher,
                banks,
                config,
                rank=processes.process_index,
                size=processes.num_processes,
                done=lambda _, bar=bar: next(bar, None),  # type: ignore[misc]
            )
        processes.wait_for_everyone()
        if is_main:
            with writing(target, error=ShardError, stays=_SHARDS_STAY):
                save_banks(target, banks, corpus=split.manifest.fingerprint)
                manifest = finish_labels(
                    target,
                    split.manifest.shards,
                    vocabulary,
                    config,
                    corpus=split.manifest.fingerprint,
                    made_with={"config": config.model_dump(mode="json"), "teacher": teacher.fingerprint},
                    further=caption_agreement(split, target, vocabulary),
                )
            _report(target, manifest.statistics, vocabulary.entities, vocabulary.relations)
        processes.wait_for_everyone()


def _refuse_unfinished(folder: Path) -> None:
    packed_with = read_manifest(folder).packed_with
    missing = [stage for stage in ("boxes", "entities") if packed_with.get(stage, {}) is None]
    if missing:
        raise ShardError(
            f"{folder} was packed without {' and '.join(missing)}, which labels are made of; "
            f"add them with shards/pack.py and {' and '.join(f'stage={stage}' for stage in missing)}"
        )


def _insist_on_room(folder: Path) -> None:
    """Try to write where labels go, before a teacher has worked for them."""
    labels = labels_folder(folder, "any").parent
    with writing(labels, error=ShardError, stays=_SHARDS_STAY):
        labels.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=labels) as file:
            file.write(b"labels")


def stored_samples(split: PackedSplit, entry: ShardEntry) -> Iterator[StoredSample]:
    """Yield the stored image and its boxes [M, 4], in pixels, of every sample of a shard, in order."""
    number = split.manifest.shards.index(entry)
    for sample in np.flatnonzero(split.index["shard"] == number):
        boxes = split.read_json(int(sample))["boxes"]
        corners = [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in boxes]
        yield split.read_image(int(sample)), np.array(corners, dtype=np.float64).reshape(-1, 4)


def caption_agreement(split: PackedSplit, folder: Path, vocabulary: Vocabulary) -> dict[str, float]:
    """Return `quality.agreement` of a split's object labels with its captions' entities and nouns.

    Over every sample of a small split, over 20,000 evenly spaced ones of a large one.
    """
    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), AGREEMENT_SAMPLES)).astype(np.int64))
    places = {name.casefold(): place for place, name in enumerate(vocabulary.entities)}
    named_SK = np.zeros((len(rows), len(places)), dtype=np.bool_)
    ids, samples = [], []
    shard, objects = -1, np.empty(0, dtype=label_dtype(1))
    for number, row in enumerate(rows):
        record, entry = split.read_json(int(row)), split.index[row]
        for caption in record["captions"]:
            if caption["image_key"] == record["key"]:
                spans = [tuple(Span(**span) for span in caption[kind]) for kind in ("entities", "nouns")]
                names = [name.casefold() for name, _ in names_in((spans[0], spans[1]))]
                named_SK[number, [places[name] for name in names if name in places]] = True
        if entry["shard"] != shard:
            shard = int(entry["shard"])
            objects = np.load(label_file(folder, split.manifest.shards[shard].name, "objects"))
        first = int(entry["box_start"])
        ids.append(objects["ids"][first : first + len(record["boxes"])])
        samples.append(np.full(len(ids[-1]), number, dtype=np.int64))
    numbers = agreement(
        np.concatenate(ids).astype(np.int64), samples_N=np.concatenate(samples), named_SK=named_SK
    )
    return {f"objects_{name}": value for name, value in numbers.items()}


def _report(
    target: Path, found: dict[str, float], entities: tuple[str, ...], relations: tuple[str, ...]
) -> None:
    for kind, names in (("objects", entities), ("images", relations)):
        own = {n.removeprefix(f"{kind}_"): v for n, v in found.items() if n.startswith(f"{kind}_")}
        print(
            f"{kind}: {own['rows']:.0f} labels, mean entropy {own['entropy']:.2f} nats, "
            f"{own['share_confident']:.0%} with a probability of at least 0.2, most frequent "
            f"'{names[int(own['top_prompt'])]}' at {own['top_share']:.0%}",
            flush=True,
        )
        if "agreement_top1" in own:
            top = [
                f"{own[f'agreement_top{k}']:.0%} (by chance {own[f'agreement_top{k}_by_chance']:.1%})"
                for k in AGREEMENT_AT
            ]
            print(
                f"{kind}: the first prompt is named in the photo's captions {top[0]}, one of the first five {top[1]}",
                flush=True,
            )
        warning = dominance_warning(own, names, kind=kind)
        if warning:
            print(f"warning: {warning}", flush=True)
    print(f"wrote {target}", flush=True)
