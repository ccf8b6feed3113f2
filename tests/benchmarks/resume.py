"""Start-up and mid-epoch resume of our loader on a simulated corpus of 20 million pairs.

5000 shards of 1000 photos with four captions each: the shards are one real file under 5000 names, the index and the
pairs are as large as those of 5 million photos, and every photo has a name of its own there.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from promptmeup import shard_format as sf
from promptmeup.packing.images import StoredImage
from promptmeup.packing.record import Draft, draft_json
from promptmeup.packing.writer import read_shard, write_shard
from promptmeup.records import Box, Caption
from tests.benchmarks import harness

SHARDS, PHOTOS, CAPTIONS = 5000, 1000, 4
PAIRS = SHARDS * PHOTOS * CAPTIONS
POSITION = PAIRS // 2
BATCH = 64
REPEATS = 5


def write_corpus(folder: Path) -> None:
    """Write the simulated corpus; 0.9 GB of tables."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    shapes = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((384, 288))
    shapes.save(buffer, "JPEG", quality=90)
    image = StoredImage(buffer.getvalue(), 384, 288, 384, 288)

    def sample(number: int) -> tuple[str, bytes, bytes]:
        key = sf.image_key(f"{number}.jpg")
        captions = tuple(Caption(f"{number}-{n}", f"a minister speaks, {n}", key) for n in range(CAPTIONS))
        boxes = (Box(10.0, 20.0, 150.0, 220.0, "person", 0.9),)
        return key, image.jpeg, draft_json(Draft(key, f"{number}.jpg", image, captions, boxes, "drawn"))

    first = folder / sf.shard_name(0)
    write_shard(first, map(sample, range(PHOTOS)))
    shard = read_shard(first)
    entries = [replace(shard.entry, name=sf.shard_name(number)) for number in range(SHARDS)]
    for entry in entries[1:]:
        os.link(first, folder / entry.name)
    index, pairs = np.tile(shard.index, SHARDS), np.tile(shard.pairs, SHARDS)
    index["shard"] = np.repeat(np.arange(SHARDS), PHOTOS)
    index["image_id"] = rng.integers(-(2**63), 2**63 - 1, len(index))
    pairs["sample"] = np.repeat(np.arange(SHARDS * PHOTOS), CAPTIONS)
    pairs["image_id"] = pairs["caption_id"] = index["image_id"][pairs["sample"]]
    np.save(folder / "index.npy", index)
    np.save(folder / "pairs.npy", pairs)
    sf.write_manifest(folder, sf.describe_split(folder, entries, rejects={}, packed_with={}))


def forget(folder: Path) -> None:
    """Have the system forget what it holds of the tables, so that they are read from the disk."""
    for name in ("index.npy", "pairs.npy"):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


RANK = """
import json, sys, time
from pathlib import Path
import torch
from promptmeup.data.loader import train_batches
from promptmeup.data.reader import PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import single
from tests.benchmarks.loader import tokenizer

def megabytes(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1000

folder, position, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
tokens = tokenizer()
before = megabytes("VmRSS")
began = time.perf_counter()
config = DataConfig(train=folder, workers=0, image={"size": 224})
sources = single(PackedSplit(Path(folder)), seed=0, window=config.window)
batches = train_batches(
    sources, config=config, tokenizer=tokens, start_pairs=position, global_batch=batch, rank=0, size=1,
)
first = next(batches)
seconds = time.perf_counter() - began
assert len(first) == batch
for _ in range(20):
    next(batches)
print(json.dumps({"seconds": seconds, "mb": megabytes("VmHWM") - before}))
"""


def start(folder: Path, position: int) -> dict[str, float]:
    """Start a rank at `position` in a process of its own; return its seconds and megabytes."""
    forget(folder)
    command = [sys.executable, "-c", RANK, str(folder), str(position), str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_resume() -> tuple[list[harness.Row], dict[str, float]]:
    """Time from opening the corpus to the first batch, at the start and at pair 10 million, cold tables."""
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "train"
        write_corpus(folder)
        for position in (0, POSITION):
            runs = [start(folder, position) for _ in range(REPEATS)]
            seconds = harness.spread([run["seconds"] for run in runs])
            megabytes = float(np.median([run["mb"] for run in runs]))
            rows.append(
                {
                    "stage": "resume",
                    "side": f"pair {position:,} of {PAIRS:,}",
                    "seconds": seconds.median,
                    "p25": seconds.p25,
                    "p75": seconds.p75,
                    "resident MB": megabytes,
                }
            )
        summary["resume_seconds"], summary["resume_rss_mb"] = seconds.median, megabytes
    return rows, summary


if __name__ == "__main__":
    harness.run("resume", measure_resume)
