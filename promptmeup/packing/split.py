"""One split, from its samples to finished shards: the pipeline of images, boxes, entities and writer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from promptmeup.errors import CorpusError
from promptmeup.packing.detector import Detector
from promptmeup.packing.entities import EntityFinder, VocabularyCounter
from promptmeup.packing.images import BadImageError, StoredImage, prepare_image
from promptmeup.packing.record import sample_json, stored_boxes
from promptmeup.packing.rejects import RejectLog
from promptmeup.packing.writer import ShardWriter
from promptmeup.progress import Progress
from promptmeup.records import Box, Reject, Sample
from promptmeup.shard_format import ShardEntry, write_atomically

CHUNK = 64
"""images that go through detector and spaCy together: bounds the memory whatever the corpus's size"""

T = TypeVar("T")
Reader = Callable[[Callable[[Reject], None]], Iterable[Sample]]
"""Yields a split's samples and calls its argument with whatever it cannot read."""


@dataclass(frozen=True)
class PackedFiles:
    """What `pack_split` wrote: everything but the manifest."""

    shards: tuple[ShardEntry, ...]
    matched_pairs: int
    rejects: dict[str, int]
    """pairs by reason"""
    reject_table: str
    """the same for people, with examples"""


def pack_split(
    read: Reader,
    folder: Path,
    *,
    image_root: Path,
    detector: Detector | None,
    finder: EntityFinder,
    shorter_side: int,
    jpeg_quality: int,
    samples_per_shard: int,
    max_reject_rate: float,
    threads: int,
) -> PackedFiles:
    """Write all files of one split into `folder` from scratch, except its manifest.

    Args:
        read: brings the samples; each one's `image_path` is inside `image_root`.
        detector: finds the boxes where a sample brings none.

    Raises:
        CorpusError: more than `max_reject_rate` of the pairs is lost, or nothing is left to pack.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    vocabulary = VocabularyCounter()
    matched_pairs = 0
    with (
        RejectLog(folder / "rejects.jsonl", max_rate=max_reject_rate) as rejects,
        ShardWriter(folder, samples_per_shard=samples_per_shard) as writer,
        ThreadPoolExecutor(threads) as pool,
        Progress(f"pack {folder.name}", unit="images") as bar,
    ):
        prepare = partial(_prepare, shorter_side=shorter_side, quality=jpeg_quality)
        for chunk in _chunks(_ahead(pool, prepare, rejects.watch(read(rejects.add_unread)))):
            good: list[tuple[Sample, StoredImage]] = []
            for sample, image in chunk:
                if isinstance(image, StoredImage):
                    good.append((sample, image))
                else:
                    item = str(sample.image_path.relative_to(image_root))
                    rejects.add(Reject(item, image.reason, image.detail, pairs=len(sample.captions)))
            detected = _detect(good, detector)
            texts = [caption.text for sample, _ in good for caption in sample.captions]
            all_found = finder.find(texts)
            for (sample, image), detections in zip(good, detected, strict=True):
                item = str(sample.image_path.relative_to(image_root))
                boxes = _boxes(sample, image, detections, item=item, reject=rejects.add)
                found = list(islice(all_found, len(sample.captions)))
                for caption, entities in zip(sample.captions, found, strict=True):
                    vocabulary.add(caption.id, entities)
                    matched_pairs += caption.image_key == sample.key
                record = sample_json(sample, image, image_path=item, boxes=boxes, found=found)
                writer.add(sample.key, jpeg=image.jpeg, record=record)
            bar.advance(len(chunk), lost=f"{rejects.lost} pairs")
            rejects.check()
        rejects.check(finished=True)
        if rejects.seen == rejects.lost:
            raise CorpusError(f"nothing to pack: of {rejects.seen} pairs none is left\n{rejects.table()}")
        shards = writer.finish()
    assert rejects.seen == rejects.lost + sum(entry.pairs for entry in shards), "a pair went astray"
    write_atomically(folder / "entities.tsv", vocabulary.tsv().encode())
    return PackedFiles(shards, matched_pairs, dict(rejects.pairs), rejects.table())


def _clear(folder: Path) -> None:
    """Remove what an unfinished earlier run left; other shards than the new ones would be read along."""
    names = ("shard-*.tar", ".*.tmp", "index.npy", "pairs.npy", "rejects.jsonl", "entities.tsv")
    for name in names:
        for path in folder.glob(name):
            path.unlink()


def _prepare(sample: Sample, *, shorter_side: int, quality: int) -> StoredImage | BadImageError:
    try:
        return prepare_image(sample.image_path, shorter_side=shorter_side, quality=quality)
    except BadImageError as bad:
        return bad


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Callable[[Sample], StoredImage | BadImageError],
    samples: Iterable[Sample],
) -> Iterator[tuple[Sample, StoredImage | BadImageError]]:
    """Yield each sample with its image, in order, while the threads work on the next ones."""
    waiting: deque[tuple[Sample, Future[StoredImage | BadImageError]]] = deque()
    for sample in samples:
        waiting.append((sample, pool.submit(prepare, sample)))
        if len(waiting) > CHUNK:
            first, image = waiting.popleft()
            yield first, image.result()
    for last, image in waiting:
        yield last, image.result()


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _detect(
    images: Sequence[tuple[Sample, StoredImage]], detector: Detector | None
) -> list[tuple[Box, ...] | None]:
    """Return the detector's boxes where it has to look: at the stored image, as training will see it."""
    wanted = [i for i, (sample, _) in enumerate(images) if sample.boxes is None and detector is not None]
    found: list[tuple[Box, ...] | None] = [None] * len(images)
    if wanted and detector is not None:
        detected = detector.detect([images[i][1].open() for i in wanted])
        for i, boxes in zip(wanted, detected, strict=True):
            found[i] = boxes
    return found


def _boxes(
    sample: Sample,
    image: StoredImage,
    detected: tuple[Box, ...] | None,
    *,
    item: str,
    reject: Callable[[Reject], None],
) -> tuple[Box, ...]:
    """Return the boxes to store, from the corpus or the detector; what is wrong with them goes to `reject`."""
    pairs = len(sample.captions)
    if sample.boxes is not None:
        boxes, dropped = stored_boxes(sample.boxes, image, scale_x=image.scale_x, scale_y=image.scale_y)
        detail = "the corpus names none"
    elif detected is not None:
        boxes, dropped = stored_boxes(detected, image)
        detail = "the detector found none"
    else:
        boxes, dropped, detail = (), 0, "the corpus brings none and no detector is configured"
    if dropped:
        size = f"{image.width}x{image.height}"
        bad = f"{dropped} boxes less than a pixel wide or high inside the image, stored as {size}"
        reject(Reject(item, "bad_box", bad, pairs=pairs, kept=True))
    if not boxes:
        reject(Reject(item, "no_detections", detail, pairs=pairs, kept=True))
    return boxes
