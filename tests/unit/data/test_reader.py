"""Random access to shards and soft labels, and what is said when they are damaged."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import webdataset

from promptmeup import shard_format as sf
from promptmeup.data import reader
from promptmeup.data.reader import DamagedSampleError, LabelReader, PackedSplit
from promptmeup.errors import ShardError
from tests.support.packed import write_labels, write_packed_split


@pytest.fixture
def copy(split_folder, tmp_path):
    """A copy of the split that a test may damage."""
    return shutil.copytree(split_folder, tmp_path / "train")


def test_reads_the_same_bytes_as_webdataset(split):
    urls = [str(split.folder / entry.name) for entry in split.manifest.shards]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == len(split) == 10
    for sample in (7, 0, 9, 3):  # any order
        assert split.read_image(sample) == theirs[sample]["jpg"]
        assert split.read_json(sample) == json.loads(theirs[sample]["json"])


def test_pairs_point_to_their_captions(split):
    assert split.manifest.pairs == len(split.pairs) == 40
    matched = split.matched()
    assert matched.sum() == split.manifest.matched_pairs == 30
    for pair, is_match in zip(split.pairs, matched, strict=True):
        record = split.read_json(pair["sample"])
        caption = record["captions"][pair["caption"]]
        assert sf.key_id(record["key"]) == pair["image_id"]
        assert sf.key_id(caption["image_key"]) == pair["caption_id"]
        assert is_match == (caption["image_key"] == record["key"])


def test_few_files_stay_open(split, monkeypatch):
    monkeypatch.setattr(reader, "OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd"))
    for sample in (0, 4, 8, 0, 4, 8):
        assert split.read_json(sample)["key"] in split.where(sample)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    split.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_survives_pickling(split):
    split.read_image(0)
    assert pickle.loads(pickle.dumps(split)).read_image(3) == split.read_image(3)


def test_forked_readers_do_not_disturb_each_other(split):
    expected = [split.read_image(i) for i in range(10)]  # the descriptors are open now
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        good = all(split.read_image(i % 10) == expected[i % 10] for i in range(300))
        os.write(write_end, b"y" if good else b"n")
        os._exit(0)
    assert all(split.read_image(9 - i % 10) == expected[9 - i % 10] for i in range(300))
    os.waitpid(child, 0)
    assert os.read(read_end, 1) == b"y"
    os.close(read_end)
    os.close(write_end)


def _truncate(folder):
    os.truncate(folder / "shard-000001.tar", 5000)


def _remove_shard(folder):
    (folder / "shard-000002.tar").unlink()


def _remove_index(folder):
    (folder / "index.npy").unlink()


def _cut_index(folder):
    os.truncate(folder / "index.npy", 200)


def _wrong_index(folder):
    np.save(folder / "index.npy", np.zeros(10))


def _short_pairs(folder):
    np.save(folder / "pairs.npy", np.load(folder / "pairs.npy")[:-1])


def _pairs_of_another_shard(folder):
    np.save(folder / "pairs.npy", np.load(folder / "pairs.npy")[::-1])


def _remove_manifest(folder):
    (folder / "manifest.json").unlink()


def _damage_manifest(folder):
    (folder / "manifest.json").write_text('{"schema": 2, "shards": [')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"shard-000001.tar has 5000 bytes, the manifest says \d+"),
        (_remove_shard, "shard-000002.tar is missing"),
        (_remove_index, "index.npy is missing"),
        (_cut_index, "index.npy is damaged"),
        (_wrong_index, r"index.npy holds \(10,\) of float64, the manifest says \(10,\)"),
        (_short_pairs, r"pairs.npy holds \(39,\).*the manifest says \(40,\)"),
        (_pairs_of_another_shard, "rows 0 to 16 are not the pairs of shard-000000.tar"),
        (_remove_manifest, "is not a packed split"),
        (_damage_manifest, "cannot read .*manifest.json"),
    ],
)
def test_damage_is_named_on_opening(copy, damage, message):
    damage(copy)
    with pytest.raises(ShardError, match=message):
        PackedSplit(copy)


def test_damage_while_running_is_named(copy):
    split = PackedSplit(copy)
    split.read_image(0)
    for name in ("shard-000000.tar", "shard-000001.tar"):
        os.truncate(copy / name, 100)
    with pytest.raises(
        ShardError, match=r"shard-000000.tar has 100 bytes, the manifest says .* \(0 of \d+ bytes"
    ):
        split.read_image(0)
    (copy / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"cannot open .*shard-000002.tar"):
        split.read_json(9)


def test_shard_overwritten_at_the_same_size_is_noticed(copy):
    size = (copy / "shard-000000.tar").stat().st_size
    (copy / "shard-000000.tar").write_bytes(b"\0" * size)
    with pytest.raises(
        DamagedSampleError, match=r"shard-000000.tar, sample at byte \d+ \(key \w+\): the CRC-32"
    ):
        PackedSplit(copy).read_json(2)
    without = next(PackedSplit(copy).read(np.array([2]), checksums=False))
    assert isinstance(without, DamagedSampleError)
    assert without.reason.startswith("not JSON")
    assert str(pickle.loads(pickle.dumps(without))) == str(without)


def test_labels_are_those_of_the_sample(split):
    folder = sf.labels_folder(split.folder, "bank")
    labels = LabelReader(folder, split)
    assert labels.num_kept == 4
    # sample 9 is the second of the third shard; every image has two boxes
    objects = np.load(folder / "shard-000002.objects.npy")
    image = np.load(folder / "shard-000002.images.npy")[1]
    ids, probs = labels.objects(9)
    assert (ids.dtype, probs.dtype) == (np.int64, np.float32)
    assert np.array_equal(ids, objects["ids"][2:4])
    assert np.array_equal(probs, objects["probs"][2:4].astype(np.float32))
    assert np.array_equal(labels.image(9)[0], image["ids"])
    assert np.array_equal(labels.image(9)[1], image["probs"].astype(np.float32))


def test_labels_of_another_corpus_are_refused(split, tmp_path):
    other = write_packed_split(
        tmp_path / "other", num_images=10, captions_per_image=3, boxes_per_image=2, seed=6
    )
    folder = write_labels(other, "bank", seed=1)
    fingerprints = sf.read_manifest(other).fingerprint, split.manifest.fingerprint
    with pytest.raises(ShardError, match=f"{fingerprints[0]}.*{fingerprints[1]}.*launch/label.py again"):
        LabelReader(folder, split)


def test_short_label_file_is_named(copy):
    split = PackedSplit(copy)
    path = sf.labels_folder(copy, "bank") / "shard-000001.objects.npy"
    np.save(path, np.load(path)[:-1])
    labels = LabelReader(path.parent, split)
    labels.image(4)
    with pytest.raises(ShardError, match=r"shard-000001.objects.npy holds \(7,\)"):
        labels.objects(4)
