"""A raw corpus -> packed splits; those that are finished are left alone, and each manifest comes last."""

import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from promptmeup import __version__
from promptmeup.config import Config
from promptmeup.corpora import newsclippings
from promptmeup.corpora.newsclippings import NewsClippingsConfig
from promptmeup.errors import CorpusError, ShardError
from promptmeup.packing.detector import Detector, DetectorConfig
from promptmeup.packing.entities import EntityConfig, EntityFinder
from promptmeup.packing.split import PackedFiles, pack_split
from promptmeup.records import Reject, Sample
from promptmeup.shard_format import Manifest, corpus_fingerprint, read_manifest, write_manifest


class PackConfig(Config):
    """How shards/pack.py makes shards of a raw corpus."""

    corpus: NewsClippingsConfig
    out: Path
    """folder that gets one folder a split"""
    splits: tuple[str, ...] = Field(default=("train", "val"), min_length=1)
    shorter_side: int = Field(default=288, ge=32, le=4096)
    """pixels; larger photos are reduced to it"""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    detector: DetectorConfig | None = None
    """finds the boxes of images for which the corpus brings none"""
    entities: EntityConfig = EntityConfig()
    samples_per_shard: int = Field(default=1000, ge=1)
    max_reject_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """share of the pairs that may be lost"""
    threads: int = Field(default=2, ge=1, le=256)
    """for reading, resizing and encoding images; detector and spaCy have their own"""

    @model_validator(mode="after")
    def _boxes_come_from_somewhere(self) -> Self:
        if self.detector is None and self.corpus.boxes is None:
            raise ValueError(
                "objects must come from somewhere: set detector.weights to YOLO weights, "
                "or corpus.boxes to a file of known boxes"
            )
        return self


def pack(config: PackConfig) -> None:
    """Pack every split of `config` that is not packed yet, and say what came of it.

    Raises:
        CorpusError: the corpus cannot be read, or too many of its pairs are lost.
        ShardError: a split was packed with other settings, or the output cannot be written.
        WeightsError: the detector or the spaCy model is not there.
    """
    missing = []
    for split in config.splits:
        if is_packed(config.out / split, config):
            print(f"{config.out / split}: packed already with these settings, nothing to do", flush=True)
        else:
            missing.append(split)
    if not missing:
        return
    known = newsclippings.splits(config.corpus)
    if unknown := [split for split in missing if split not in known]:
        raise CorpusError(
            f"{config.corpus.root} has no split {', '.join(unknown)} in subset {config.corpus.subset}; "
            f"there: {', '.join(known) or 'none'}; choose with splits=[...]"
        )
    detector = Detector(config.detector) if config.detector else None
    finder = EntityFinder(config.entities)
    for split in missing:
        try:
            _pack_one(split, config, detector=detector, finder=finder)
        except OSError as error:  # trouble with a single image is caught where it is read
            raise ShardError(
                f"cannot write {error.filename or config.out / split}: {error.strerror}; "
                "make room or mend the permissions and run the same command again"
            ) from error


def _pack_one(split: str, config: PackConfig, *, detector: Detector | None, finder: EntityFinder) -> None:
    start = time.monotonic()
    folder = config.out / split

    def read(reject: Callable[[Reject], None]) -> Iterable[Sample]:
        return newsclippings.samples(config.corpus, split=split, reject=reject)

    files = pack_split(
        read,
        folder,
        image_root=config.corpus.root / newsclippings.ORIGIN,
        detector=detector,
        finder=finder,
        shorter_side=config.shorter_side,
        jpeg_quality=config.jpeg_quality,
        samples_per_shard=config.samples_per_shard,
        max_reject_rate=config.max_reject_rate,
        threads=config.threads,
    )
    manifest = Manifest(
        split=split,
        shards=files.shards,
        fingerprint=corpus_fingerprint(files.shards),
        samples=sum(entry.samples for entry in files.shards),
        pairs=sum(entry.pairs for entry in files.shards),
        matched_pairs=files.matched_pairs,
        rejects=files.rejects,
        packed_with={
            "settings": content_settings(config),
            "versions": {"promptmeup": __version__, "pillow": metadata.version("pillow")}
            | {"spacy": metadata.version("spacy")},
            "detector": detector.description if detector else None,
            "spacy_model": finder.description,
        },
    )
    write_manifest(folder, manifest)
    print(_summary(folder, manifest, files, seconds=time.monotonic() - start), flush=True)


def content_settings(config: PackConfig) -> dict[str, Any]:
    """Return the settings that decide what is in the shards, JSON-able; the others say how to work."""
    working: dict[str, Any] = {
        "out": True,
        "splits": True,
        "threads": True,
        "max_reject_rate": True,
        "detector": {"batch", "device"},
        "entities": {"batch"},
    }
    return config.model_dump(mode="json", exclude=working)


def is_packed(folder: Path, config: PackConfig) -> bool:
    """Return whether `folder` holds a finished split made with `config`'s settings.

    Raises:
        ShardError: it holds one made with others.
    """
    if not (folder / "manifest.json").exists():
        return False
    there, wanted = read_manifest(folder).packed_with.get("settings"), content_settings(config)
    if there != wanted:
        raise ShardError(
            f"{folder} was packed with other settings ({_differences(there, wanted)}); "
            f"set out to another folder, or delete {folder} to pack it again"
        )
    return True


def _differences(there: Any, wanted: Any, name: str = "") -> str:
    if isinstance(there, dict) and isinstance(wanted, dict):
        parts = (
            _differences(there.get(key), wanted.get(key), f"{name}.{key}" if name else key)
            for key in sorted(there.keys() | wanted.keys())
        )
        return ", ".join(part for part in parts if part)
    return "" if there == wanted else f"{name} was {there}, is {wanted}"


def _summary(folder: Path, manifest: Manifest, files: PackedFiles, *, seconds: float) -> str:
    boxes = sum(entry.boxes for entry in manifest.shards)
    megabytes = sum(entry.bytes for entry in manifest.shards) / 1e6
    lines = [
        f"packed {manifest.split}: {manifest.samples} images, {manifest.pairs} pairs "
        f"({manifest.matched_pairs} matched), {boxes} boxes ({boxes / manifest.samples:.1f} an image) "
        f"in {seconds:.0f} s ({manifest.samples / seconds:.1f} images/s)",
        f"  {folder}: {len(manifest.shards)} shards, {megabytes:.1f} MB, fingerprint {manifest.fingerprint}",
    ]
    if files.reject_table:
        lines += [f"left out or incomplete, see {folder / 'rejects.jsonl'}:", files.reject_table]
    return "\n".join(lines)
