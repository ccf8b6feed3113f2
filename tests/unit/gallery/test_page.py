"""The page says what the shards hold, and nothing that a caption brings can run in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from promptmeup.data.reader import PackedSplit
from promptmeup.errors import ShardError
from promptmeup.gallery.cards import choose_samples, pieces
from promptmeup.gallery.page import newest_labels, write_gallery
from promptmeup.gallery.statistics import charts
from tests.support.packed import write_packed_split
from tests.support.real_data import ROOT
from tests.support.shards import change_record, forge


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write_packed_split(
        tmp_path / "train", num_images=9, captions_per_image=2, boxes_per_image=2, seed=0, labels="abc"
    )


def page_of(folder: Path, **how: object) -> str:
    out = folder.parent / "gallery.html"
    write_gallery([folder], out, **({"samples": 4} | how))  # type: ignore[arg-type]
    return out.read_text(encoding="utf-8")


def test_photos_boxes_captions_and_labels_are_there(split: Path) -> None:
    page = page_of(split)
    packed = PackedSplit(split)
    rows = choose_samples(packed, number=4, seed=0)
    assert page.count("<article") == 4
    assert page.count('<div class="box"') == 8
    assert page.count("data:image/jpeg;base64,") == 4
    assert (page.count('<li class="match"'), page.count('<li class="mismatch"')) == (8, 4)
    for row in rows:
        record = packed.read_json(row)
        assert record["key"] in page
        box = record["boxes"][0]
        assert f"left: {round(100 * box['x0'] / 96, 2)}%" in page
        assert f"{box['label']} {box['score']:.2f}" in page
    assert len(re.findall(r"[er] \d \d+%", page)) == 4 * (1 + 2) * 4, "four guesses of each photo and object"
    assert "http://" not in page and "https://" not in page, "it opens without a network"


def test_every_chart_has_its_numbers(split: Path) -> None:
    found = {
        chart.title: {bar.name: bar.value for bar in chart.bars}
        for chart in charts(PackedSplit(split), seed=0)
    }
    assert found["Pairs"] == {"matched": 18, "mismatched": 9}
    assert found["Objects in a photo"] == {"2": 9}
    assert found["Captions shown with a photo"] == {"3": 9}
    assert found["Shorter side of the originals, in pixels"] == {"0 to 127": 9}
    assert sum(found["Words in a caption"].values()) == 27
    assert sum(found["Objects by the detector's label"].values()) == 18
    assert "Pairs with problems, by reason (rejects.jsonl)" not in found, "there are none"


def test_a_caption_cannot_run_anything(split: Path) -> None:
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">'

    def poison(record: dict[str, object]) -> None:
        record["image_path"] = evil
        record["captions"][0].update(text=evil, nouns=[])  # type: ignore[index]
        record["boxes"][0]["label"] = '"><script>'  # type: ignore[index]

    forge(split, change_record(poison, sample=0))
    # the forged record is longer, so only the shard's own index would find it: read it as a packer left it
    from promptmeup.packing.writer import read_shard, write_index

    manifest = PackedSplit(split).manifest
    write_index(split, [read_shard(split / entry.name) for entry in manifest.shards])
    page = page_of(split, samples=9)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_pieces_are_the_whole_caption() -> None:
    text = "Angela Merkel speaks in Berlin about dogs"
    caption = {
        "text": text,
        "entities": [{"start": 24, "end": 30, "label": "GPE"}, {"start": 0, "end": 13, "label": "PERSON"}],
        "nouns": [{"start": 37, "end": 41, "label": "dog"}, {"start": 25, "end": 28, "label": "inside"}],
    }
    found = pieces(caption)
    assert "".join(piece.text for piece in found) == text
    assert [(piece.text, piece.kind, piece.label) for piece in found if piece.kind] == [
        ("Angela Merkel", "entity", "PERSON"),
        ("Berlin", "entity", "GPE"),
        ("dogs", "noun", "dog"),
    ]
    long = pieces({"text": "x" * 50_000, "entities": [], "nouns": []})
    assert len("".join(piece.text for piece in long)) == 1501, "a caption of 10,000 words is cut"


def test_samples_are_a_random_choice_that_can_be_had_again(split: Path) -> None:
    packed = PackedSplit(split)
    assert choose_samples(packed, number=4, seed=0) == choose_samples(packed, number=4, seed=0)
    assert choose_samples(packed, number=4, seed=0) != choose_samples(packed, number=4, seed=1)
    assert choose_samples(packed, number=99, seed=0) == list(range(9))


def test_asked_for_by_key(split: Path) -> None:
    key = PackedSplit(split).read_json(7)["key"]
    page = page_of(split, keys=[key])
    assert page.count("<article") == 1
    assert f'id="key-{key}"' in page
    with pytest.raises(ShardError, match="no sample has the key nonsense"):
        page_of(split, keys=[key, "nonsense"])


def test_labels_of_another_state_of_the_split_are_not_shown(split: Path) -> None:
    assert newest_labels(PackedSplit(split)) is not None
    forge(split, change_record(lambda record: record["boxes"].reverse()))
    assert newest_labels(PackedSplit(split)) is None


def test_the_command(split: Path, tmp_path: Path) -> None:
    command = [sys.executable, "shards/gallery.py", str(split), "--out", str(tmp_path / "x/page.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "page.html: open it in any browser" in done.stdout
    assert (tmp_path / "x/page.html").stat().st_size > 5000
