"""Our index + pread reader and our loader against stock webdataset, on the same packed shards."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from promptmeup import shard_format as sf
from promptmeup.data.collate import Example, collate
from promptmeup.data.loader import DataConfig, train_batches, training_order
from promptmeup.data.reader import PackedSplit
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import apply_view, decode, draw_view, jitter
from promptmeup.packing.images import StoredImage
from promptmeup.packing.record import Draft, draft_json
from promptmeup.packing.writer import read_shard, write_index, write_shard
from promptmeup.records import Batch, Box, Caption
from tests.benchmarks import harness

SAMPLES = 2000
SHARD = 250
BATCH = 50
REPEATS = 5
WORDS = ("a", "minister", "speaks", "to", "the", "press", "in", "front", "of", "house")
MEAN = STD = (0.5, 0.5, 0.5)


def write_split(folder: Path, *, samples: int) -> Path:
    """Pack synthetic photos of 384 x 288 (about 35 kB, as real ones of that size), one caption and 3 boxes each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    # the grain of fifty photos, moved about: drawing 2000 would take longer than the benchmark
    photos = [_photo(rng) for _ in range(50)]

    def sample(i: int) -> tuple[str, bytes, bytes]:
        key = sf.image_key(f"{i}.jpg")
        photo = np.roll(photos[i % 50], rng.integers(0, 288, size=2), axis=(0, 1))
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=90)
        caption = Caption(str(i), " ".join(rng.choice(WORDS, size=12)), key)
        boxes = tuple(Box(10.0 * m, 20.0, 150.0, 220.0, "person", 0.9) for m in range(3))
        image = StoredImage(buffer.getvalue(), 384, 288, 384, 288)
        return key, image.jpeg, draft_json(Draft(key, f"{i}.jpg", image, (caption,), boxes, "drawn"))

    shards = []
    for first in range(0, samples, SHARD):
        path = folder / sf.shard_name(first // SHARD)
        write_shard(path, map(sample, range(first, min(first + SHARD, samples))))
        shards.append(read_shard(path))
    write_index(folder, shards)
    entries = tuple(shard.entry for shard in shards)
    manifest = sf.Manifest(
        "train",
        entries,
        sf.corpus_fingerprint(entries),
        samples,
        samples,
        samples,
        {},
        sf.table_hashes(folder),
    )
    sf.write_manifest(folder, manifest)
    return folder


def _photo(rng: np.random.Generator) -> Any:
    """Return soft shapes with some grain [288, 384, 3]: their JPEG costs what a photo's costs."""
    shapes = Image.fromarray(rng.integers(0, 255, (18, 24, 3), dtype=np.uint8)).resize((384, 288))
    grain = rng.normal(0, 9, (288, 384, 3))
    return np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)


def tokenizer() -> TextTokenizer:
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]"))


def stock(folder: Path) -> Any:
    """Return webdataset's usual pipeline up to the undecoded members: shards and samples shuffled."""
    urls = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    return webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).to_tuple("jpg", "json")


def read_ours(split: PackedSplit) -> int:
    """Read every sample once in training order; return how many."""
    order = training_order(split, seed=0, window=8, pairs="all")
    rows = order.rows(0, len(split))
    return sum(1 for row in rows if split.read_image(int(row)) and split.read_json(int(row)))


def read_stock(folder: Path) -> int:
    """Read every sample once through webdataset; return how many."""
    return sum(1 for jpeg, record in stock(folder) if jpeg and json.loads(record))


def load_ours(split: PackedSplit, config: DataConfig, tokens: TextTokenizer) -> Iterator[Batch]:
    """Return our loader's endless batches."""
    return train_batches(
        split,
        training_order(split, seed=0, window=config.window, pairs="all"),
        config=config,
        tokenizer=tokens,
        mean=MEAN,
        std=STD,
        seed=0,
        start_pairs=0,
        global_batch=BATCH,
        rank=0,
        size=1,
    )


def load_stock(folder: Path, config: DataConfig, tokens: TextTokenizer) -> Iterator[Batch]:
    """Return webdataset's endless batches, decoded, augmented and collated by the code that ours uses."""
    random = np.random.default_rng(0)

    def example(sample: tuple[bytes, bytes]) -> Example:
        record = json.loads(sample[1])
        image_CHW = decode(sample[0])
        boxes = [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in record["boxes"]]
        view = draw_view(image_CHW.shape[1], image_CHW.shape[2], config.image, random)
        boxes_M4 = np.array(boxes, dtype=np.float32)
        image_CSS, fractions_M4 = apply_view(image_CHW, boxes_M4, view, size=config.image.size)
        caption = record["captions"][0]
        return Example(
            key=record["key"],
            image_id=sf.key_id(record["key"]),
            caption_id=sf.key_id(caption["image_key"]),
            text=caption["text"],
            image_CSS=jitter(image_CSS, config.image.color_jitter, random),
            boxes_M4=fractions_M4,
        )

    def make(examples: list[Example]) -> Batch:
        return collate(
            examples,
            tokenizer=tokens,
            max_tokens=config.max_tokens,
            max_objects=config.max_objects,
            mean=MEAN,
            std=STD,
            min_confidence=config.min_confidence,
        )

    pipeline = stock(folder).map(example).batched(BATCH, collation_fn=make).repeat()
    loader = webdataset.WebLoader(
        pipeline, batch_size=None, num_workers=config.workers, prefetch_factor=config.prefetch
    )
    return iter(loader)


def read_all(read: Callable[[], int]) -> Callable[[], None]:
    """Return `read` with a check that nothing was left out, which would make it look fast."""

    def checked() -> None:
        count = read()
        assert count == SAMPLES, f"{count} of {SAMPLES} samples"

    return checked


def take_epoch(batches: Iterator[Batch]) -> Callable[[], None]:
    """Return a function that takes the next epoch's worth of batches; the workers live on between calls."""

    def take() -> None:
        count = sum(len(batch) for batch in islice(batches, SAMPLES // BATCH))
        assert count == SAMPLES, f"{count} of {SAMPLES} samples"

    return take


@contextlib.contextmanager
def corpus() -> Iterator[Path]:
    """Lend a packed split in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_split(Path(folder) / "train", samples=SAMPLES)


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time one epoch over 2000 packed photos: members alone, and whole training batches."""
    workers = min(2, len(os.sched_getaffinity(0)))
    tokens = tokenizer()
    with corpus() as folder:
        split = PackedSplit(folder)
        config = DataConfig(train=folder, workers=workers)
        readers = {
            "ours": read_all(lambda: read_ours(split)),
            "webdataset": read_all(lambda: read_stock(folder)),
        }
        loaders = {
            "ours": take_epoch(load_ours(split, config, tokens)),
            "webdataset": take_epoch(load_stock(folder, config, tokens)),
        }
        timed = {
            "reader": harness.interleave(readers, repeats=4 * REPEATS),
            # the pause lets the other side's workers fill their queue and fall idle
            "loader": harness.interleave(loaders, repeats=REPEATS, settle=0.7),
        }
    rows: list[harness.Row] = []
    summary = {}
    for stage, sides in timed.items():
        spreads = {side: harness.spread(seconds) for side, seconds in sides.items()}
        for side, time in spreads.items():
            rows.append(
                {
                    "stage": stage,
                    "side": side,
                    "workers": workers if stage == "loader" else 0,
                    "samples/s": SAMPLES / time.median,
                    "p25": SAMPLES / time.p75,
                    "p75": SAMPLES / time.p25,
                    "best": SAMPLES / time.min,
                }
            )
        summary[f"{stage}_vs_webdataset"] = spreads["webdataset"].median / spreads["ours"].median
    return rows, summary


if __name__ == "__main__":
    harness.run("loader", measure)
