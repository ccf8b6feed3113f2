"""One shard, made of its plan or brought up to date; runs in a worker process."""

import functools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmeup.packing.detector import Detector, DetectorConfig
from promptmeup.packing.entities import EntityConfig, EntityFinder, names_in
from promptmeup.packing.parts import Part, write_part
from promptmeup.packing.plan import Plan
from promptmeup.packing.record import Draft, draft_json, read_draft
from promptmeup.packing.stages import PhotoSettings, add_boxes, add_entities, photo_drafts
from promptmeup.packing.writer import read_shard, write_shard
from promptmeup.records import Reject, Sample


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of `folder`, and marks them as done in the folder `parts`; picklable.

    With `photos`, a shard is made of its plan; without, the tar that is there gets new boxes or entities and
    keeps its photos.
    """

    folder: Path
    parts: Path
    plan: Plan | None
    """brings samples, and boxes where the corpus has them"""
    photos: PhotoSettings | None
    boxes: bool
    """whether boxes are looked for"""
    detector: DetectorConfig | None
    entities: EntityConfig | None

    def __call__(self, shard: str, count: Callable[[int], None]) -> Part:
        """Write the shard's tar and then its part; `count` is called with the photos done.

        Raises:
            WeightsError: the detector or the spaCy model is not there.
            OSError: the disk is full, or cannot be written.
        """
        rejects: list[Reject] = []
        names: dict[str, Any] = {}
        made_by: dict[str, Any] = {}
        samples = self.plan.read(shard) if self.plan else []
        drafts = self._drafts(shard, samples, count, rejects.append)
        if self.boxes:
            known = {sample.key: sample.boxes for sample in samples if sample.boxes is not None}
            detector = _detector(self.detector) if self.detector else None
            drafts = add_boxes(drafts, known, detector, reject=rejects.append)
            made_by["boxes"] = detector.description if detector else None
        if self.entities:
            finder = _finder(self.entities)
            drafts = add_entities(drafts, finder)
            made_by["entities"] = finder.description

        def encoded() -> Iterator[tuple[str, bytes, bytes]]:
            for draft in drafts:
                if draft.entities_by is not None and draft.found is not None:
                    for caption, found in zip(draft.captions, draft.found, strict=True):
                        names[caption.id] = names_in(found)
                yield draft.key, draft.image.jpeg, draft_json(draft)

        path = self.folder / shard
        written = write_shard(path, encoded())
        if not written:
            path.unlink(missing_ok=True)
        contents = read_shard(path) if written else None
        part = Part(contents, tuple(rejects), tuple(names.items()), made_by)
        if self.photos:
            lost = sum(reject.pairs for reject in rejects if not reject.kept)
            assert part.pairs + lost == sum(len(sample.captions) for sample in samples), "a pair went astray"
        write_part(self.parts, shard, part)
        return part

    def _drafts(
        self,
        shard: str,
        samples: list[Sample],
        count: Callable[[int], None],
        reject: Callable[[Reject], None],
    ) -> Iterator[Draft]:
        if self.photos:
            return photo_drafts(_counted(samples, count), self.photos, reject=reject)
        return _counted(stored_drafts(self.folder / shard), count)


def stored_drafts(path: Path) -> Iterator[Draft]:
    """Yield the samples of a finished shard."""
    with tarfile.open(path) as tar:
        while (image := tar.next()) and (text := tar.next()):
            jpeg, record = (tar.extractfile(member) for member in (image, text))
            assert jpeg is not None and record is not None
            yield read_draft(jpeg.read(), json.load(record))


def _counted(items: Iterable[Any], count: Callable[[int], None]) -> Iterator[Any]:
    for item in items:
        yield item
        count(1)


@functools.lru_cache(maxsize=1)
def _detector(config: DetectorConfig) -> Detector:
    return Detector(config)


@functools.lru_cache(maxsize=1)
def _finder(config: EntityConfig) -> EntityFinder:
    return EntityFinder(config)
