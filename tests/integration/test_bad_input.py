"""Every kind of bad input, through the real reader and packer: counted with a reason, never a crash."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptmeup.config import load
from promptmeup.data.reader import PackedSplit
from promptmeup.errors import CorpusError
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from tests.support.real_data import ROOT


def write_corpus(root: Path, *, good: int) -> None:
    """Write `good` sound photos with one true and one false caption each, and one of every mishap."""
    origin = root / "visual_news/origin"
    (origin / "paper/images").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def record(number: int, path: str, caption: str = "Maria Keller speaks in Port Alden.") -> None:
        records.append({"id": number, "caption": caption, "image_path": path, "source": "paper"})

    def pair(caption: int, image: int) -> None:
        annotations.append(
            {"id": caption, "image_id": image, "falsified": caption != image, "similarity_score": 0.5}
        )

    boxes = []
    for number in range(good):
        path = f"./paper/images/{number}.jpg"
        Image.new("RGB", (80, 60), (number % 256, 80, 120)).save(origin / path)
        record(number, path)
        pair(number, number)
        pair((number + 1) % good, number)
        found = [{"x0": 5, "y0": 5, "x1": 40, "y1": 50, "label": "person", "score": 0.9}] if number else []
        boxes.append({"image_path": path, "boxes": found})
    (origin / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in boxes))

    record(900, "./paper/images/nowhere.jpg")
    pair(900, 900)
    (origin / "paper/images/broken.jpg").write_bytes((origin / "paper/images/1.jpg").read_bytes()[:200])
    record(901, "./paper/images/broken.jpg")
    pair(901, 901)
    record(902, "./paper/images/2.jpg", caption="   ")
    pair(902, 2)
    pair(12345, 3)
    pair(3, 12345)
    Image.new("RGB", (80, 60)).save(root / "secret.jpg")
    record(903, "../../secret.jpg")
    pair(903, 903)
    record(904, str(root / "secret.jpg"))
    pair(904, 904)
    (origin / "data.json").write_text(json.dumps(records))
    folder = root / "news_clippings/data/merged_balanced"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps({"annotations": annotations}))


def config(root: Path, out: Path, *overrides: str) -> PackConfig:
    return load(
        PackConfig,
        ROOT / "configs/pack/synthetic.yaml",
        [f"corpus.root={root}", f"out={out}", "splits=[train]", *overrides],
    )


EXPECTED = {
    "missing_image": 1,
    "unreadable_image": 1,
    "empty_caption": 1,
    "unknown_caption_id": 1,
    "unknown_image_id": 1,
    "path_escapes_root": 2,
    "no_detections": 2,
}


def test_counted_and_packed_without_them(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", good=80)
    pack(config(tmp_path / "corpus", tmp_path / "out", "max_reject_rate=0.05"))

    split = PackedSplit(tmp_path / "out/train")
    assert split.manifest.pairs == 160
    assert split.manifest.rejects == EXPECTED
    lines = [json.loads(line) for line in (tmp_path / "out/train/rejects.jsonl").read_text().splitlines()]
    pairs: Counter[str] = Counter()
    for line in lines:
        pairs[line["reason"]] += line["pairs"]
        assert line["detail"]
    assert pairs == EXPECTED
    stored = {split.read_json(i)["image_path"] for i in range(len(split))}
    assert len(stored) == 80
    assert not any("secret" in path for path in stored)


def test_too_many_rejects_stop_with_a_summary(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", good=20)
    with pytest.raises(CorpusError) as caught:
        pack(config(tmp_path / "corpus", tmp_path / "out", "max_reject_rate=0.05"))
    for reason in EXPECTED:
        assert reason in str(caught.value)
    assert "rejects.jsonl" in str(caught.value)
    assert not (tmp_path / "out/train/manifest.json").exists()
