"""Shards on disk: readable by stock webdataset, exactly indexed, the same bytes every time."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from promptmeup.packing.writer import read_shard, write_index, write_shard
from promptmeup.shard_format import INDEX_DTYPE, PAIR_DTYPE, ShardEntry, key_id, shard_name


def record(key: str, *, captions: int, boxes: int) -> bytes:
    data = {
        "key": key,
        "captions": [{"image_key": key if i == 0 else "f" * 16} for i in range(captions)],
        "boxes": [{"label": "é"}] * boxes,
    }
    return json.dumps(data, ensure_ascii=False).encode()


SAMPLES = {
    f"{number:015x}{9 - number}": (b"\xff\xd8jpeg %d" % number * 100, captions, boxes)
    for number, (captions, boxes) in enumerate([(1, 0), (3, 2), (2, 1), (1, 4), (5, 0)])
}


def encoded() -> list[tuple[str, bytes, bytes]]:
    return [
        (key, jpeg, record(key, captions=captions, boxes=boxes))
        for key, (jpeg, captions, boxes) in SAMPLES.items()
    ]


def write(folder: Path) -> tuple[ShardEntry, ...]:
    folder.mkdir()
    shards = []
    for number in range(3):
        path = folder / shard_name(number)
        assert write_shard(path, encoded()[2 * number :][:2]) == (2, 2, 1)[number]
        shards.append(read_shard(path))
    write_index(folder, shards)
    return tuple(shard.entry for shard in shards)


def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    shards = write(tmp_path / "a")
    urls = [str(tmp_path / "a" / entry.name) for entry in shards]
    read: list[dict[str, Any]] = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == list(SAMPLES)
    for sample in read:
        _, captions, boxes = SAMPLES[sample["__key__"]]
        assert sample["json"] == json.loads(record(sample["__key__"], captions=captions, boxes=boxes))
    raw = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["jpg"] for sample in raw] == [jpeg for jpeg, _, _ in SAMPLES.values()]


def test_the_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path) -> None:
    shards = write(tmp_path / "a")
    with (tmp_path / "stock.tar").open("wb") as file:
        stock = webdataset.TarWriter(file, user="root", group="root", mtime=0)
        for key, jpeg, text in encoded()[:2]:
            stock.write({"__key__": key, "jpg": jpeg, "json": text})
        stock.close()
    assert (tmp_path / "stock.tar").read_bytes() == (tmp_path / "a" / shards[0].name).read_bytes()


def test_entries_say_what_is_in_each_shard(tmp_path: Path) -> None:
    shards = write(tmp_path / "a")
    assert [(e.name, e.samples, e.pairs, e.boxes) for e in shards] == [
        ("shard-000000.tar", 2, 4, 2),
        ("shard-000001.tar", 2, 3, 5),
        ("shard-000002.tar", 1, 5, 0),
    ]
    for entry in shards:
        content = (tmp_path / "a" / entry.name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_index_points_at_the_exact_bytes(tmp_path: Path) -> None:
    shards = write(tmp_path / "a")
    index = np.load(tmp_path / "a" / "index.npy")
    assert index.dtype == INDEX_DTYPE
    assert index["image_id"].tolist() == [key_id(key) for key in SAMPLES]
    for row, (key, (jpeg, captions, boxes)) in zip(index, SAMPLES.items(), strict=True):
        content = (tmp_path / "a" / shards[row["shard"]].name).read_bytes()
        assert content[row["image_offset"] :][: row["image_size"]] == jpeg
        text = content[row["json_offset"] :][: row["json_size"]]
        assert text == record(key, captions=captions, boxes=boxes)
        assert row["boxes"] == boxes
    assert index["row"].tolist() == [0, 1, 0, 1, 0]
    assert index["box_start"].tolist() == [0, 0, 0, 1, 0], "counted from the start of each shard"


def test_pairs_are_one_row_each_with_their_sample_and_both_images(tmp_path: Path) -> None:
    write(tmp_path / "a")
    pairs = np.load(tmp_path / "a" / "pairs.npy")
    assert pairs.dtype == PAIR_DTYPE
    assert pairs["sample"].tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4]
    assert pairs["caption"].tolist() == [0, 0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4]
    index = np.load(tmp_path / "a" / "index.npy")
    assert (pairs["image_id"] == index["image_id"][pairs["sample"]]).all()
    matched = pairs["image_id"] == pairs["caption_id"]
    assert (matched == (pairs["caption"] == 0)).all()
    assert (pairs["caption_id"][~matched] == key_id("f" * 16)).all()


def test_the_same_samples_give_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert len(files) == 5, "three shards and two index files; nothing temporary"


def test_an_unfinished_shard_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, bytes, bytes]]:
        yield encoded()[0]
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"], "no final name before it is whole"
        raise RuntimeError("something went wrong")

    with pytest.raises(RuntimeError, match="something went wrong"):
        write_shard(tmp_path / "shard-000000.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-000000.tar"
    write_shard(path, encoded())
    before = path.read_bytes()
    with pytest.raises(AssertionError):
        write_shard(path, [*encoded()[:1], encoded()[0]])
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_no_sample_is_no_shard(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "shard-000000.tar", []) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a.b", "0123456789ABCDEF", "0" * 15, "0" * 16 + "\n"])
def test_other_keys_are_our_own_mistake(tmp_path: Path, key: str) -> None:
    with pytest.raises(AssertionError, match="16 hex"):
        write_shard(tmp_path / "shard-000000.tar", [(key, b"", b"{}")])
    with pytest.raises(AssertionError, match="two samples"):
        write_shard(tmp_path / "shard-000000.tar", [("0" * 16, b"", b"{}")] * 2)
