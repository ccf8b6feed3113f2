"""Our index + pread reader and our loader against webdataset, MosaicML Streaming and litdata, on the same photos."""

import contextlib
import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import torchvision.transforms.v2.functional as TF
import webdataset
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torchvision.io import ImageReadMode, decode_image
from transformers import PreTrainedTokenizerFast

from promptmeup import shard_format as sf
from promptmeup.data.collate import Example, collate
from promptmeup.data.loader import train_batches
from promptmeup.data.reader import PackedSplit, Stored
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import single, training_order
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import apply_view, color_images, decode, draw_color, draw_view
from promptmeup.packing.images import StoredImage
from promptmeup.packing.record import Draft, draft_json
from promptmeup.packing.writer import read_shard, write_index, write_shard
from promptmeup.records import Batch, Box, Caption
from tests.benchmarks import harness
from tests.benchmarks.peers import litdata_peer, mosaicml
from tests.benchmarks.peers.peer import touch
from tests.benchmarks.resume import measure_resume

SAMPLES = 2000
SHARD = 250
BATCH = 50
REPEATS = 5
EPOCHS = 3
WORDS = ("a", "minister", "speaks", "to", "the", "press", "in", "front", "of", "house")


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
    entries = [shard.entry for shard in shards]
    sf.write_manifest(folder, sf.describe_split(folder, entries, rejects={}, packed_with={}))
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


def read_ours(folder: Path, *, epochs: int, checksums: bool) -> int:
    """Open the split and read it for some epochs in training order, as a loader does; return how many samples."""
    split = PackedSplit(folder)
    order = training_order(split, seed=0, window=8, pairs="all")
    count = 0
    for start in range(0, epochs * order.num_pairs, BATCH):
        samples = split.pairs["sample"][order.rows(start, start + BATCH)]
        found = split.read(samples, checksums=checksums)
        count += sum(1 for one in found if isinstance(one, Stored) and touch(one.image) and one.record)
    return count


def read_stock(folder: Path, *, epochs: int) -> int:
    """Read the shards for some epochs through webdataset; return how many samples came."""
    dataset = stock(folder)
    samples = (sample for _ in range(epochs) for sample in dataset)
    return sum(1 for jpeg, record in samples if touch(jpeg) and orjson.loads(record))


def load_ours(split: PackedSplit, config: DataConfig, tokens: TextTokenizer) -> Iterator[Batch]:
    """Return our loader's endless batches."""
    return train_batches(
        single(split, seed=0, window=config.window),
        config=config,
        tokenizer=tokens,
        start_pairs=0,
        global_batch=BATCH,
        rank=0,
        size=1,
    )


def bare_loop(jpegs: list[bytes], config: DataConfig) -> int:
    """Decode, crop and colour photos that are in memory already, one after the other: what nobody can avoid.

    torchvision's own functions, on uint8; no reading, no JSON, no boxes, no text, no batch.
    """
    random = np.random.default_rng(0)
    size, amount = config.image.size, config.image.color_jitter
    for jpeg in jpegs:
        image_CHW = decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), ImageReadMode.RGB)
        view = draw_view(image_CHW.shape[1], image_CHW.shape[2], config.image, random)
        place = (view.top, view.left, view.height, view.width)
        image_CSS = TF.resized_crop(
            image_CHW, *place, [size, size], TF.InterpolationMode.BICUBIC, antialias=True
        )
        if view.flip:
            image_CSS = TF.horizontal_flip(image_CSS)
        brightness, contrast, saturation = random.uniform(1 - amount, 1 + amount, size=3).tolist()
        image_CSS = TF.adjust_brightness(image_CSS, brightness)
        image_CSS = TF.adjust_contrast(image_CSS, contrast)
        TF.adjust_saturation(image_CSS, saturation)
    return len(jpegs)


def _limit_worker(jpegs: list[bytes], config: DataConfig, orders: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    while orders.get():
        answers.put(bare_loop(jpegs, config))


@contextlib.contextmanager
def limit(split: PackedSplit, config: DataConfig) -> Iterator[Callable[[], int]]:
    """Lend a function that runs the bare loop over every photo, on as many processes as the loader has workers."""
    fork = multiprocessing.get_context("fork")
    orders, answers = fork.SimpleQueue(), fork.SimpleQueue()
    jpegs = [split.read_image(sample) for sample in range(len(split))]
    workers = [
        fork.Process(target=_limit_worker, args=(jpegs[n :: config.workers], config, orders, answers))
        for n in range(config.workers)
    ]
    for worker in workers:
        worker.start()

    def run() -> int:
        for _ in workers:
            orders.put(True)
        return sum(answers.get() for _ in workers)

    yield run
    for _ in workers:
        orders.put(False)
    for worker in workers:
        worker.join()


def load_stock(folder: Path, config: DataConfig, tokens: TextTokenizer) -> Iterator[Batch]:
    """Return webdataset's endless batches, decoded, augmented and collated by the code that ours uses."""
    random = np.random.default_rng(0)

    def example(sample: tuple[bytes, bytes]) -> Example:
        record = orjson.loads(sample[1])
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
            image_CSS=image_CSS,
            color_3=draw_color(config.image.color_jitter, random),
            boxes_M4=fractions_M4,
        )

    def make(examples: list[Example]) -> Batch:
        batch = collate(
            examples,
            tokenizer=tokens,
            max_tokens=config.max_tokens,
            max_objects=config.max_objects,
            min_confidence=config.min_confidence,
        )
        return color_images(batch)

    pipeline = stock(folder).map(example).batched(BATCH, collation_fn=make).repeat()
    loader = webdataset.WebLoader(
        pipeline, batch_size=None, num_workers=config.workers, prefetch_factor=config.prefetch
    )
    return iter(loader)


def read_all(read: Callable[[], int], epochs: int = 1) -> Callable[[], None]:
    """Return `read` with a check that nothing was left out, which would make it look fast."""

    def checked() -> None:
        count = read()
        assert count == epochs * SAMPLES, f"{count} of {epochs * SAMPLES} samples"

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


def timed_readers(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Time opening and reading, without decoding, in one process: the first epoch, and a run of three.

    Every side parses JSON with the same library and looks at every page of the photo.
    """
    split = PackedSplit(folder)
    mosaicml.write(split, folder.parent / "mds")
    litdata_peer.write(split, folder.parent / "litdata")
    readers: dict[str, Callable[[int], int]] = {
        "ours": lambda epochs: read_ours(folder, epochs=epochs, checksums=False),
        "ours, checksums": lambda epochs: read_ours(folder, epochs=epochs, checksums=True),
        "webdataset": lambda epochs: read_stock(folder, epochs=epochs),
        "mosaicml": lambda epochs: mosaicml.read(folder.parent / "mds", epochs=epochs),
        "litdata": lambda epochs: litdata_peer.read(folder.parent / "litdata", epochs=epochs),
    }
    try:
        return {
            stage: harness.interleave(
                {name: read_all(partial(read, epochs), epochs) for name, read in readers.items()},
                repeats=2 * REPEATS,
            )
            for stage, epochs in (("first epoch", 1), ("read", EPOCHS))
        }
    finally:
        mosaicml.clean()


def timed_loaders(folder: Path, workers: int) -> dict[str, list[float]]:
    """Time whole training batches from `workers` processes, beside the bare loop on as many."""
    split, tokens = PackedSplit(folder), tokenizer()
    config = DataConfig(train=str(folder), workers=workers)
    with limit(split, config) as bare:
        loaders = {
            "bare decode + augment": read_all(bare),
            "ours": take_epoch(load_ours(split, config, tokens)),
            "webdataset": take_epoch(load_stock(folder, config, tokens)),
        }
        # the pause lets the other side's workers fill their queue and fall idle
        return harness.interleave(loaders, repeats=REPEATS, settle=0.7)


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time one epoch over 2000 packed photos: members alone, and whole training batches."""
    workers = min(2, len(os.sched_getaffinity(0)))
    with corpus() as folder:
        timed = timed_readers(folder) | {"batch": timed_loaders(folder, workers)}
    rows: list[harness.Row] = []
    medians = {}
    for stage, sides in timed.items():
        samples = SAMPLES * (EPOCHS if stage == "read" else 1)
        for side, seconds in sides.items():
            time = harness.spread(seconds)
            medians[stage, side] = time.median
            rows.append(
                {
                    "stage": f"read, {EPOCHS} epochs" if stage == "read" else stage,
                    "side": side,
                    "processes": workers if stage == "batch" else 1,
                    "samples/s": samples / time.median,
                    "p25": samples / time.p75,
                    "p75": samples / time.p25,
                }
            )
    summary = {}
    for stage, name in (("read", "read"), ("first epoch", "first_epoch")):
        for peer in ("webdataset", "mosaicml", "litdata"):
            summary[f"{name}_vs_{peer}"] = medians[stage, peer] / medians[stage, "ours"]
    summary["batch_vs_limit"] = medians["batch", "bare decode + augment"] / medians["batch", "ours"]
    more_rows, more = measure_resume()
    rows += more_rows
    summary |= more
    summary["batch_vs_webdataset"] = medians["batch", "webdataset"] / medians["batch", "ours"]
    return rows, summary


if __name__ == "__main__":
    harness.run("loader", measure)
