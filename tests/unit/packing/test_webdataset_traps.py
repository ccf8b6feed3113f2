"""What stock webdataset passes over in silence, and what happens to the same shards here."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import pytest
import webdataset
from webdataset import ShardWriter, TarWriter

from promptmeup.data.reader import PackedSplit
from promptmeup.data.sources import training_order
from promptmeup.errors import ShardError
from promptmeup.packing.verify import verify
from promptmeup.packing.writer import write_shard
from promptmeup.shard_format import file_sha256
from tests.support.packed import write_packed_split
from tests.support.shards import Members, forge, read_members


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write_packed_split(
        tmp_path / "train", num_images=12, captions_per_image=2, boxes_per_image=1, seed=0, images_per_shard=4
    )


def stock(split: Path, **how: Any) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(split.glob("shard-*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, **how))


def checks(split: Path) -> set[str]:
    return {finding.check for finding in verify([split]).findings}


@pytest.mark.filterwarnings("ignore:ReadError")
def test_a_shard_cut_short(split: Path) -> None:
    path = split / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = stock(split, handler=webdataset.warn_and_continue)
    assert len(read) < 12, "webdataset goes on with what is left"
    with pytest.raises(ShardError, match=r"shard-000001\.tar has \d+ bytes, the manifest says"):
        PackedSplit(split)
    assert {"size", "sha256", "tar"} <= checks(split)


def test_a_flipped_bit(split: Path) -> None:
    path = split / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 16  # in the first photo
    path.write_bytes(content)
    assert len(stock(split)) == 12, "webdataset does not notice"
    assert "sha256" in checks(split)


def test_members_of_two_keys_interleaved(split: Path) -> None:
    forge(split, lambda m: [m[0], m[2], m[1], m[3], *m[4:]])
    assert len(stock(split)) == 14, "webdataset makes four halves of two samples"
    assert "members" in checks(split)


def test_keys_with_dots(split: Path) -> None:
    def rename(m: Members) -> Members:
        return [("us.president.jpg", m[0][1]), ("us.president.json", m[1][1]), ("us.senate.jpg", m[2][1]),
                ("us.senate.json", m[3][1]), *m[4:]]  # fmt: skip

    forge(split, rename)
    assert len(stock(split)) == 11, "webdataset merges the two"
    assert "key" in checks(split)
    with pytest.raises(AssertionError, match="16 hex"):
        write_shard(split / "shard-000009.tar", [("us.president", b"", b"{}")])


def test_every_rank_has_equally_many_batches(split: Path) -> None:
    def of_rank(rank: int, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        return len(stock(split, nodesplitter=webdataset.split_by_node))

    with pytest.MonkeyPatch.context() as patch:
        assert of_rank(0, patch) != of_rank(1, patch), "three shards do not divide by two: a hang in training"
    # global batches are slices of one stream, so a rank's part is as long as every other's, for ever
    order = training_order(PackedSplit(split), seed=0, window=2, pairs="all")
    batches = [order.rows(start, start + 8) for start in range(0, 80, 8)]
    assert {len(batch) for batch in batches} == {8}


def test_every_epoch_has_another_order_and_all_shards(split: Path) -> None:
    packed = PackedSplit(split)
    order = training_order(packed, seed=0, window=1, pairs="all")
    epochs = [order.rows(e * order.num_pairs, (e + 1) * order.num_pairs).tolist() for e in range(4)]
    assert all(sorted(rows) == list(range(order.num_pairs)) for rows in epochs)
    first = [packed.index["shard"][packed.pairs["sample"][rows[0]]] for rows in epochs]
    assert len({tuple(rows) for rows in epochs}) == 4
    assert len(set(first)) > 1, "the first half, a rank's share of a batch, is not always of the same shards"


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    def stock_tar() -> bytes:
        buffer = io.BytesIO()
        writer = TarWriter(buffer)
        writer.write({"__key__": "0" * 16, "jpg": b"x", "json": b"{}"})
        writer.close()
        return hashlib.sha256(buffer.getvalue()).digest()

    one = stock_tar()
    deadline = time.monotonic() + 3
    while stock_tar() == one and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stock_tar() != one, "webdataset writes the time"
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [("0" * 16, b"x", b"{}")])
    assert file_sha256(tmp_path / "a.tar") == file_sha256(tmp_path / "b.tar")


def test_an_exception_while_writing(tmp_path: Path) -> None:
    def stock_writer() -> None:
        with ShardWriter(str(tmp_path / "stock-%06d.tar"), maxcount=10, verbose=0) as writer:
            writer.write({"__key__": "0", "jpg": b"x"})
            raise RuntimeError("something went wrong")

    with pytest.raises(RuntimeError):
        stock_writer()
    assert len(read_members(tmp_path / "stock-000000.tar")) == 1, "webdataset leaves a whole-looking shard"

    def samples() -> Any:
        yield "0" * 16, b"x", b"{}"
        raise RuntimeError("something went wrong")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "ours.tar", samples())
    assert not list(tmp_path.glob("*ours*"))
