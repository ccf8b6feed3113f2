"""Packing against the least that it could cost: decoding, the detector, and processes that share the work."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from promptmeup.data.reader import PackedSplit
from promptmeup.packing.detector import Detector, DetectorConfig
from promptmeup.packing.entities import EntityConfig, EntityFinder, VocabularyCounter, names_in
from promptmeup.packing.pack import pack
from promptmeup.packing.processes import available_cores
from promptmeup.packing.settings import PackConfig
from tests.benchmarks import harness

PHOTOS = 3000
DETECTED = 160
REPEATS = 5
SIDE, QUALITY = 288, 90
RECORDS = 1_260_000
"""as many as VisualNews has"""
REAL = Path(os.environ.get("PROMPTMEUP_REAL_DATA", "../shared/data"))
YOLO = REAL / "detectors/yolov8n_fused_dequant_from_int8.safetensors"


def write_photos(root: Path, *, number: int) -> None:
    """Draw photos of 640 x 427 (about 70 kB, as news agencies' previews), a caption each."""
    rng = np.random.default_rng(0)
    shapes = [
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).resize((640, 427))
        for _ in range(40)
    ]
    grain = [rng.normal(0, 9, (427, 640, 3)) for _ in range(10)]
    rows = []
    root.mkdir()
    for i in range(number):
        pixels = np.clip(np.asarray(shapes[i % 40]) + grain[i % 10], 0, 255).astype(np.uint8)
        Image.fromarray(np.roll(pixels, i, axis=1)).save(root / f"{i:05}.jpg", quality=88)
        rows.append({"image": f"{i:05}.jpg", "caption": f"Angela Merkel meets {i} voters in Leeds."})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(root: Path, out: Path, **more: Any) -> PackConfig:
    """Return a configuration that packs `root` into `out`, photos alone."""
    corpus = {"kind": "tabular", "root": str(root), "files": {"train": "train.jsonl"}}
    how = {
        "out": str(out),
        "splits": ["train"],
        "stage": "photos",
        "shorter_side": SIDE,
        "samples_per_shard": 250,
    }
    text = json.dumps({"corpus": corpus, "jpeg_quality": QUALITY, "processes": 1} | how | more)
    return PackConfig.model_validate_json(text, strict=True)


def bare_loop(root: Path) -> Callable[[], None]:
    """Return a function that runs the least that packing `root` could cost."""
    command = [sys.executable, "-m", "tests.support.bare_packing", str(root), str(SIDE), str(QUALITY)]
    return lambda: run_quietly(command)


def run_quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def packer(root: Path, *, processes: int) -> Callable[[], None]:
    """Return a function that runs the command on `root`, from the plan to the manifest."""
    overrides = [
        *("corpus.kind=tabular", f"corpus.root={root}", "corpus.files.train=train.jsonl", "splits=[train]"),
        *("stage=photos", f"shorter_side={SIDE}", f"jpeg_quality={QUALITY}", "samples_per_shard=250"),
        *(f"out={root.parent}/packed", f"processes={processes}"),
    ]

    def run() -> None:
        shutil.rmtree(root.parent / "packed", ignore_errors=True)
        run_quietly([sys.executable, "shards/pack.py", *overrides])

    return run


def quietly(config: PackConfig) -> None:
    """Pack without a word."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pack(config)


def row(stage: str, side: str, units: int, seconds: list[float], unit: str) -> harness.Row:
    spread = harness.spread(seconds)
    rates = {"median": units / spread.median, "p25": units / spread.p75, "p75": units / spread.p25}
    return {"stage": stage, "side": side, **rates, "unit": unit}


def photos_and_processes(root: Path) -> tuple[list[harness.Row], dict[str, float]]:
    """Time one process against the bare loop, and two processes against one."""
    two = available_cores() >= 2
    sides = {"bare loop": bare_loop(root), "1 process": packer(root, processes=1)}
    if two:
        sides["2 processes"] = packer(root, processes=2)
    timed = harness.interleave(sides, repeats=REPEATS)
    medians = {side: harness.spread(seconds).median for side, seconds in timed.items()}
    rows = [row("photos", side, PHOTOS, seconds, "images/s") for side, seconds in timed.items()]
    summary = {"pack_vs_limit": medians["bare loop"] / medians["1 process"]}
    if two:
        summary["pack_scaling_2"] = medians["1 process"] / medians["2 processes"]
    return rows, summary


def detection(root: Path, weights: Path) -> tuple[list[harness.Row], dict[str, float]]:
    """Time stage=boxes on packed photos, shards rewritten, against ultralytics' predict on the decoded ones."""
    quietly(settings(root, root.parent / "boxes"))
    split = PackedSplit(root.parent / "boxes/train")
    images = [Image.open(io.BytesIO(split.read_image(i))).convert("RGB") for i in range(len(split))]
    how = {"weights": str(weights), "image_size": 416, "device": "cpu", "batch": 16}
    detector = Detector(DetectorConfig(**how))

    def bare() -> None:
        for start in range(0, len(images), 16):
            detector._model.predict(
                images[start : start + 16],
                conf=0.25,
                max_det=20,
                imgsz=416,
                device="cpu",
                rect=True,
                verbose=False,
            )

    def ours() -> None:
        quietly(settings(root, root.parent / "boxes", stage="boxes", redo=True, detector=how))

    import torch

    torch.set_num_threads(1)  # as packing does: its processes share the cores
    timed = harness.interleave({"ultralytics predict": bare, "stage=boxes": ours}, repeats=REPEATS)
    medians = {side: harness.spread(seconds).median for side, seconds in timed.items()}
    rows = [row("boxes", side, len(images), seconds, "images/s") for side, seconds in timed.items()]
    return rows, {"detect_vs_ultralytics": medians["ultralytics predict"] / medians["stage=boxes"]}


def entities() -> tuple[list[harness.Row], dict[str, float]]:
    """Send the real VisualNews captions through the entity stage; print the names found most often."""
    files = sorted((REAL / "news_captions").glob("cove_context_*.json"))
    captions = [entry["true_caption"] for file in files for entry in json.loads(file.read_text())]
    finder = EntityFinder(EntityConfig())
    next(finder.find(captions[:1]))
    began = time.perf_counter()
    found = [
        each for start in range(0, len(captions), 256) for each in finder.find(captions[start : start + 256])
    ]
    seconds = time.perf_counter() - began
    counter = VocabularyCounter()
    kinds: Counter[str] = Counter()
    for number, each in enumerate(found):
        counter.add(str(number), names_in(each))
        kinds.update(span.label for span in each[0])
    lines = [line.split("\t") for line in counter.tsv().splitlines()]
    spans = sum(len(each[0]) for each in found), sum(len(each[1]) for each in found)
    print(f"{len(captions)} captions: {spans[0]} entities, {spans[1]} nouns, {len(lines)} different names")
    print("entities by label:", ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()))
    for kind in ("entity", "noun"):
        names = [f"{name} {count}" for name, count, its_kind in lines if its_kind == kind][:15]
        print(f"most frequent, {kind}:", ", ".join(names))
    rate = len(captions) / seconds
    return [
        {
            "stage": "entities",
            "side": "spaCy, 1 core",
            "median": rate,
            "p25": rate,
            "p75": rate,
            "unit": "captions/s",
        }
    ], {"captions_per_second": rate}


def memory(root: Path) -> tuple[list[harness.Row], dict[str, float]]:
    """Plan a corpus of VisualNews' size in a process of its own, and look at its memory."""
    origin = root / "visual_news/origin"
    folder = root / "news_clippings/data/merged_balanced"
    origin.mkdir(parents=True)
    folder.mkdir(parents=True)
    caption = (
        "Angela Merkel speaks to reporters after a meeting of heads of state in Brussels about the budget "
        * 2
    )
    with (origin / "data.json").open("w") as file:
        for i in range(RECORDS):
            entry = {"id": i, "caption": f"{caption}{i}", "topic": "politics", "source": "guardian"}
            entry |= {
                "image_path": f"./guardian/images/{i // 1000:04}/{i % 1000:03}.jpg",
                "article_path": "x" * 30,
            }
            file.write(("[" if i == 0 else ",") + json.dumps(entry))
        file.write("]")
    with (folder / "train.json").open("w") as file:
        pairs = ((i, (i + shift) % RECORDS) for i in range(RECORDS // 2) for shift in (0, 1))
        lines = (json.dumps({"id": c, "image_id": i, "falsified": c != i}) for c, i in pairs)
        file.write('{"annotations": [' + next(lines))
        for line in lines:
            file.write("," + line)
        file.write("]}")
    code = (
        "import re, sys, time; from pathlib import Path\n"
        "from promptmeup.corpora import newsclippings as n; from promptmeup.packing.plan import make_plan\n"
        "config = n.NewsClippingsConfig(root=Path(sys.argv[1])); began = time.perf_counter()\n"
        "plan = make_plan(lambda reject: n.samples(config, split='train', reject=reject), Path(sys.argv[1]) / 'work',"
        " samples_per_shard=1000, settings={})\n"
        # not ru_maxrss: a process inherits that of the one that started it
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(time.perf_counter() - began, peak, sum(plan.samples))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True)
    seconds, peak, samples = (float(word) for word in done.stdout.split())
    size = (origin / "data.json").stat().st_size / 1e6
    print(
        f"plan of {RECORDS} records ({size:.0f} MB of JSON) and {samples:.0f} photos: {peak / 1e3:.0f} MB at most"
    )
    rate = samples / seconds
    return [
        {"stage": "plan", "side": "1 process", "median": rate, "p25": rate, "p75": rate, "unit": "images/s"}
    ], {
        "plan_rss_mb": peak / 1e3,
        "plan_seconds": seconds,
    }


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time packing's stages, each beside the least that it could cost."""
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", number=PHOTOS)
        parts = [photos_and_processes(folder / "photos")]
        if YOLO.is_file():
            write_photos(folder / "few", number=DETECTED)
            parts.append(detection(folder / "few", YOLO))
        else:
            print(f"no detector: {YOLO} is not there (PROMPTMEUP_REAL_DATA)")
        if (REAL / "news_captions").is_dir():
            parts.append(entities())
        parts.append(memory(folder / "visualnews"))
    for its_rows, its_summary in parts:
        rows += its_rows
        summary |= its_summary
    return rows, summary


if __name__ == "__main__":
    harness.run("packing", measure)
