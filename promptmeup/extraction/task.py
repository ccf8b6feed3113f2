"""A downstream corpus as a model sees it: its labels, and its splits as examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptmeup.corpora import extraction
from promptmeup.corpora.extraction import ExtractionCorpus, Statistics
from promptmeup.errors import CorpusError
from promptmeup.extraction.batches import Rows
from promptmeup.extraction.data import Corpus, labels_of, subset, task_of
from promptmeup.extraction.examples import Example, SentenceEncoder
from promptmeup.extraction.pictures import Pictures
from promptmeup.models.extraction import Task
from promptmeup.models.weights import some


@dataclass(frozen=True)
class Split:
    """A split that is evaluated."""

    name: str
    examples: tuple[Example, ...]
    statistics: Statistics

    @property
    def cut_words(self) -> int:
        """Words that the model does not see, or not whole, since their sentence is too long for it."""
        return sum(example.cut_words for example in self.examples)


@dataclass(frozen=True)
class TaskData:
    """What one run trains and is evaluated on."""

    task: Task
    labels: tuple[str, ...]
    none: str | None
    """the relation that means none, where the labels have one"""
    train: tuple[Example, ...]
    train_statistics: Statistics
    """of the whole training split, before `fraction` and `shots`"""
    val: Split
    splits: tuple[Split, ...]
    """evaluated at the end"""
    pad_id: int
    pictures: Pictures | None

    def rows(self, examples: Sequence[Example]) -> Rows:
        return Rows(examples, pad_id=self.pad_id, pictures=self.pictures)

    @property
    def sha256(self) -> dict[str, str]:
        """File of labels -> SHA-256, of all splits; with its split where others have files of the same name."""
        splits = {"train": self.train_statistics, "val": self.val.statistics}
        splits |= {split.name: split.statistics for split in self.splits}
        digests: dict[str, dict[str, str]] = {}
        for split, statistics in splits.items():
            for name, digest in statistics.sha256.items():
                digests.setdefault(name, {})[split] = digest
        return {
            name if len(set(found.values())) == 1 else f"{name} ({split})": digest
            for name, found in digests.items()
            for split, digest in found.items()
        }


def open_task(
    corpus: Corpus, *, tokenizer: Any, none: str | None, image_size: int | None, seed: int
) -> TaskData:
    """Make examples of a corpus.

    Args:
        tokenizer: gets the relation markers.
        image_size: of the model's vision encoder; None for text only.
        seed: chooses the subset, where data.subset_seed does not.

    Raises:
        CorpusError: a split is empty, or no relation is named as `none` is.
    """
    data = corpus.data
    task, labels = task_of(data), labels_of(data, corpus.rows["train"], none=none)
    if task == "relations" and none is not None and none not in labels:
        raise CorpusError(
            f"none={none!r} is none of the {len(labels)} relations of {data.root} ({some(list(labels))}), so that "
            "saying that there is no relation would count as finding one. Set none to the one that says so, or "
            "none=null where each of them is a relation"
        )
    encoder = SentenceEncoder(tokenizer, labels=labels, max_tokens=data.max_tokens)
    rows = subset(
        corpus.rows["train"],
        fraction=data.fraction,
        shots=data.shots,
        seed=seed if data.subset_seed is None else data.subset_seed,
    )
    pictures = None
    if image_size is not None:
        pictures = Pictures(size=image_size, eval_mode=data.eval_mode, max_crops=data.max_crops)
    splits = {
        name: _split(data, name, corpus.rows[name], corpus.statistics[name], encoder)
        for name in ("val", *data.splits)
    }
    return TaskData(
        task=task,
        labels=labels,
        none=none if task == "relations" else None,
        train=tuple(encoder.encode(row) for row in rows),
        train_statistics=corpus.statistics["train"],
        val=splits["val"],
        splits=tuple(splits[name] for name in data.splits),
        pad_id=tokenizer.pad_token_id,
        pictures=pictures,
    )


def open_split(data: ExtractionCorpus, name: str, encoder: SentenceEncoder) -> Split:
    """Read one split.

    Raises:
        CorpusError: it is absent, malformed or empty.
    """
    rows = extraction.read(data, name)
    return _split(data, name, rows, extraction.count(data, name, rows), encoder)


def _split(
    data: ExtractionCorpus,
    name: str,
    rows: extraction.Rows,
    statistics: Statistics,
    encoder: SentenceEncoder,
) -> Split:
    if not rows:
        raise CorpusError(f"split '{name}' of {data.root} is empty; leave it out of data.splits")
    return Split(name, tuple(encoder.encode(row) for row in rows), statistics)
