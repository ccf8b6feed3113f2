"""What fine-tuning, evaluation, prediction or comparison would read and write, before anything is run."""

import argparse
import os
from pathlib import Path

from promptmeup.corpora.extraction import ExtractionCorpus, Rows, read
from promptmeup.errors import UserError
from promptmeup.extraction.batches import steps_per_epoch
from promptmeup.extraction.compare import CompareConfig
from promptmeup.extraction.data import subset
from promptmeup.extraction.evaluate import EvaluateConfig
from promptmeup.extraction.folder import finetuned_folder
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.extraction.start import model_folder
from promptmeup.progress import listed
from promptmeup.training.dry_run import describe_source, describe_split, ranks_here


def plan_finetuning(config: FinetuneConfig, ranks: int | None) -> str:
    """Return what it would start from, the sentences of each split, the steps, and what is written."""
    ranks = ranks or ranks_here(os.environ)
    lines = [("starts from", _start(config.model))]
    train = _split(config.data, "train")
    lines += [
        (name, _describe(_split(config.data, name))) for name in dict.fromkeys(["val", *config.data.splits])
    ]
    lines.insert(1, ("train", _describe(train)))
    if isinstance(train, str):
        steps = (
            f"of {config.batch} sentences; {config.epochs} epochs at most, whose length the corpus will say"
        )
    else:
        seed = config.data.subset_seed if config.data.subset_seed is not None else config.seeds[0]
        used = len(subset(train, fraction=config.data.fraction, shots=config.data.shots, seed=seed))
        each = steps_per_epoch(used, config.batch)
        steps = (
            f"{config.epochs * each} of {config.batch} sentences at most: {config.epochs} epochs of {used} sentences, "
            f"on {ranks} rank{'s' if ranks > 1 else ''}"
        )
    lines += [("steps", steps)]
    done = [seed for seed in config.seeds if (config.out / f"seed-{seed}" / "result.json").exists()]
    for seed in config.seeds:
        lines += [("writes", f"{config.out / f'seed-{seed}'}{': done already' if seed in done else ''}")]
    lines += [("writes", f"{config.out}/result.json and best/, of all seeds")]
    return "\n".join(listed(lines))


def plan_evaluation(config: EvaluateConfig, ranks: int | None) -> str:  # noqa: ARG001
    """Return which model would be run on what."""
    lines = [("model", describe_source(str(config.model), key="model"))]
    if config.data is None:
        lines += [
            ("split", describe_split(config.split)),
            ("writes", str(config.json_file or "the screen alone")),
        ]
        return "\n".join(listed(lines))
    lines += [(config.split, _describe(_split(config.data, config.split)))]
    folder = finetuned_folder(config.model)
    beside = folder.parent if folder else config.model
    out = config.out or beside / f"evaluation-{config.data.root.resolve().name}-{config.split}"
    lines += [("writes", f"{out}{f' and {config.json_file}' if config.json_file else ''}")]
    return "\n".join(listed(lines))


def plan_comparison(config: CompareConfig, ranks: int | None) -> str:  # noqa: ARG001
    """Return which files would be compared."""
    lines = []
    for side, files in (("first", config.first), ("second", config.second)):
        lines += [(side, f"{path}: {_lines(path)}") for path in files]
    lines += [
        ("bootstrap", f"{config.resamples} resamples, {config.confidence:.0%} interval, seed {config.seed}")
    ]
    lines += [("writes", str(config.json_file or "the screen alone"))]
    return "\n".join(listed(lines))


def plan_prediction(flags: argparse.Namespace) -> str:
    """Return what launch/predict.py would do with these flags."""
    lines = [("model", describe_source(str(flags.model), key="model"))]
    if finetuned_folder(flags.model) is None:
        lines += [("", f"{flags.model} holds no fine-tuned model yet")]
    if flags.input is not None:
        lines += [("reads", f"{flags.input}: {_lines(flags.input)}, {flags.batch} at once")]
        lines += [("writes", f"{flags.output}{': replaces the one there' if flags.output.exists() else ''}")]
        return "\n".join(listed(lines))
    photo = (
        "no photo" if flags.image is None else f"{flags.image}{'' if flags.image.exists() else ': not there'}"
    )
    lines += [("reads", f"{flags.text!r}, {photo}"), ("writes", "the screen alone")]
    return "\n".join(listed(lines))


def _start(source: str) -> str:
    try:
        folder = model_folder(Path(source).expanduser())
    except UserError as error:
        return str(error)
    return f"{source}: {folder}" if folder is not None else describe_source(source, key="model")


def _split(data: ExtractionCorpus, split: str) -> Rows | str:
    """Return the rows of a split, or why there are none."""
    try:
        return read(data, split)
    except UserError as error:
        return str(error)


def _describe(rows: Rows | str) -> str:
    if isinstance(rows, str):
        return rows
    absent = sum(row.image is None for row in rows)
    return f"{len(rows)} sentences, {absent} without a photo"


def _lines(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"{sum(1 for line in file if line.strip())} lines"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
