"""The pipeline of one split: every pair is packed or in rejects.jsonl, whatever the corpus brings."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptmeup.errors import CorpusError
from promptmeup.packing.entities import EntityFinder
from promptmeup.packing.split import CHUNK, PackedFiles, pack_split
from promptmeup.records import Box, Caption, Reject, Sample
from promptmeup.shard_format import image_key
from tests.support.photos import write_photo

BOX = Box(12, 8, 48, 40, "person", 0.9)


def sample(root: Path, name: str, *, captions: int = 2, boxes: tuple[Box, ...] | None = (BOX,)) -> Sample:
    key = image_key(name)
    texts = (f"Angela Merkel speaks in Berlin about {name}.", "Two dogs chase a ball.", "Dogs.")
    return Sample(
        key,
        root / name,
        tuple(
            Caption(f"{name}-{i}", texts[i % 3], key if i == 0 else image_key("another"))
            for i in range(captions)
        ),
        boxes,
    )


def good_samples(root: Path, number: int) -> list[Sample]:
    return [
        sample(root, str(write_photo(root / f"good/{i}.jpg").relative_to(root)), captions=1 + i % 3)
        for i in range(number)
    ]


def run(
    samples: list[Sample],
    out: Path,
    root: Path,
    finder: EntityFinder,
    *,
    corpus: tuple[Reject, ...] = (),
    **how: Any,
) -> PackedFiles:
    def read(reject: Callable[[Reject], None]) -> Iterator[Sample]:
        for entry in corpus:
            reject(entry)
        yield from samples

    settings: dict[str, Any] = {
        "image_root": root,
        "detector": None,
        "finder": finder,
        "shorter_side": 48,
        "jpeg_quality": 90,
        "samples_per_shard": 4,
        "max_reject_rate": 0.5,
        "threads": 2,
    }
    return pack_split(read, out, **settings | how)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(out: Path, files: PackedFiles) -> list[dict[str, Any]]:
    index = np.load(out / "index.npy")
    found = []
    for row in index:
        content = (out / files.shards[row["shard"]].name).read_bytes()
        found.append(json.loads(content[row["json_offset"] :][: row["json_size"]]))
    return found


def test_good_samples_are_packed_in_order_with_boxes_in_stored_pixels(
    tmp_path: Path, finder: EntityFinder
) -> None:
    samples = good_samples(tmp_path, 10)
    files = run(samples, tmp_path / "out", tmp_path, finder)
    packed = records(tmp_path / "out", files)
    assert [record["key"] for record in packed] == [sample.key for sample in samples]
    assert [record["image_path"] for record in packed] == [f"good/{i}.jpg" for i in range(10)]
    assert all((record["width"], record["height"]) == (72, 48) for record in packed)
    assert packed[3]["boxes"] == [
        {"x0": 9.0, "y0": 6.0, "x1": 36.0, "y1": 30.0, "label": "person", "score": 0.9}
    ]
    for record, original in zip(packed, samples, strict=True):
        assert [c["text"] for c in record["captions"]] == [c.text for c in original.captions]
        entities = {entity["text"] for entity in record["captions"][0]["entities"]}
        assert {"Angela Merkel", "Berlin"} <= entities
    assert packed[1]["captions"][1]["nouns"] == [
        {"start": 4, "end": 8, "text": "dogs", "label": "dog"},
        {"start": 17, "end": 21, "text": "ball", "label": "ball"},
    ]
    assert files.matched_pairs == 10
    assert (files.rejects, files.reject_table) == ({}, "")
    assert (tmp_path / "out" / "rejects.jsonl").read_text() == ""
    lines = (tmp_path / "out" / "entities.tsv").read_text().splitlines()
    assert "Angela Merkel\t10\tentity" in lines
    assert "ball\t6\tnoun" in lines


def test_everything_bad_is_counted_and_nothing_goes_astray(tmp_path: Path, finder: EntityFinder) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    samples = good_samples(tmp_path, 8)
    samples[1:1] = [
        sample(tmp_path, "missing.jpg", captions=3),
        sample(tmp_path, "empty.jpg", captions=1),
        sample(tmp_path, str(write_photo(tmp_path / "tiny.jpg", (1, 1)).relative_to(tmp_path)), captions=2),
    ]
    samples[5] = replace(samples[5], boxes=())
    samples[6] = replace(samples[6], boxes=(BOX, Box(200, 0, 300, 9, "outside", 1.0)))
    samples[7] = replace(samples[7], boxes=None)
    unread = (
        Reject("caption 1, image 2", "unknown_image_id", "no record 2", pairs=2),
        Reject("caption 3, image 3", "flag_disagrees", "falsified is True", kept=True),
    )
    files = run(samples, tmp_path / "out", tmp_path, finder, corpus=unread)
    lines = read_lines(tmp_path / "out" / "rejects.jsonl")
    counted = {(line["item"], line["reason"], line["pairs"], line["kept"]) for line in lines}
    assert counted == {
        ("caption 1, image 2", "unknown_image_id", 2, False),
        ("caption 3, image 3", "flag_disagrees", 1, True),
        ("missing.jpg", "missing_image", 3, False),
        ("empty.jpg", "unreadable_image", 1, False),
        ("tiny.jpg", "bad_image_size", 2, False),
        ("good/2.jpg", "no_detections", 3, True),
        ("good/3.jpg", "bad_box", 1, True),
        ("good/4.jpg", "no_detections", 2, True),
    }
    assert files.rejects == {
        "unknown_image_id": 2,
        "flag_disagrees": 1,
        "missing_image": 3,
        "unreadable_image": 1,
        "bad_image_size": 2,
        "no_detections": 5,
        "bad_box": 1,
    }
    packed = sum(entry.pairs for entry in files.shards)
    lost = sum(line["pairs"] for line in lines if not line["kept"])
    assert packed + lost == sum(len(sample.captions) for sample in samples) + 2
    assert len(np.load(tmp_path / "out" / "pairs.npy")) == packed
    assert [len(record["boxes"]) for record in records(tmp_path / "out", files)] == [1, 1, 0, 1, 0, 1, 1, 1]


def test_too_many_rejects_stop_with_a_summary_and_no_index(tmp_path: Path, finder: EntityFinder) -> None:
    samples = good_samples(tmp_path, 6) + [sample(tmp_path, f"gone/{i}.jpg") for i in range(2)]
    with pytest.raises(CorpusError) as caught:
        run(samples, tmp_path / "out", tmp_path, finder, max_reject_rate=0.2)
    message = str(caught.value)
    assert "4 of 16 pairs (25.0%)" in message
    assert "max_reject_rate=0.2" in message
    assert "missing_image" in message
    assert "2 items; first: gone/0.jpg: no such file" in message
    assert str(tmp_path / "out" / "rejects.jsonl") in message
    assert not (tmp_path / "out" / "index.npy").exists()
    assert len(read_lines(tmp_path / "out" / "rejects.jsonl")) == 2
    files = run(samples, tmp_path / "out", tmp_path, finder, max_reject_rate=0.25)
    assert sum(entry.pairs for entry in files.shards) == 12


def test_a_hopeless_corpus_stops_early(tmp_path: Path, finder: EntityFinder) -> None:
    taken = 0

    def read(reject: Callable[[Reject], None]) -> Iterator[Sample]:
        nonlocal taken
        for i in range(100_000):
            taken += 1
            yield sample(tmp_path, f"gone/{i}.jpg", captions=5)

    with pytest.raises(CorpusError, match="cannot be packed"):
        pack_split(
            read,
            tmp_path / "out",
            image_root=tmp_path,
            detector=None,
            finder=finder,
            shorter_side=48,
            jpeg_quality=90,
            samples_per_shard=4,
            max_reject_rate=0.05,
            threads=1,
        )
    assert 200 <= taken < 200 + 3 * CHUNK


def test_rejects_that_come_before_the_first_sample_are_judged_at_the_end(
    tmp_path: Path, finder: EntityFinder
) -> None:
    # 40 of 1540 pairs are below 5 %, but were all seen before the first image: no reason to stop there
    samples = [
        replace(entry, captions=tuple(replace(entry.captions[0], id=f"{i}-{j}") for j in range(500)))
        for i, entry in enumerate(good_samples(tmp_path, 3))
    ]
    unread = (Reject("x", "empty_caption", "", pairs=40),)
    run(samples, tmp_path / "out", tmp_path, finder, corpus=unread, max_reject_rate=0.05)
    with pytest.raises(CorpusError, match="40 of 1540"):
        run(samples, tmp_path / "out", tmp_path, finder, corpus=unread, max_reject_rate=0.02)


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path, finder: EntityFinder) -> None:
    with pytest.raises(CorpusError, match="of 0 pairs none is left"):
        run([], tmp_path / "out", tmp_path, finder)
    with pytest.raises(CorpusError, match="of 2 pairs none is left"):
        run([sample(tmp_path, "gone.jpg")], tmp_path / "out", tmp_path, finder, max_reject_rate=1.0)


def test_packing_again_gives_the_same_files_whatever_the_threads_and_leftovers(
    tmp_path: Path, finder: EntityFinder
) -> None:
    samples = [*good_samples(tmp_path, CHUNK + 7), sample(tmp_path, "gone.jpg")]
    run(samples, tmp_path / "a", tmp_path, finder, threads=1)
    (tmp_path / "b").mkdir()
    for left in ("shard-000099.tar", ".shard-000003.tar.tmp", "index.npy"):
        (tmp_path / "b" / left).write_text("left by a run that was killed")
    (tmp_path / "b" / "notes.txt").write_text("somebody's own")
    run(samples, tmp_path / "b", tmp_path, finder, threads=4)
    (tmp_path / "b" / "notes.txt").unlink()
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert len(files) == 18 + 4
