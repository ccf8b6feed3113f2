"""Everything that can be wrong with packed data is found, and named by shard, key and place."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptmeup import shard_format as sf
from promptmeup.errors import ShardError
from promptmeup.packing.verify import Report, split_folders, verify
from tests.support.packed import write_packed_split
from tests.support.real_data import ROOT
from tests.support.shards import Members, change_record, forge, read_members


def write(folder: Path, *, seed: int = 0, labels: str | None = "abc") -> Path:
    return write_packed_split(
        folder, num_images=10, captions_per_image=2, boxes_per_image=2, seed=seed, labels=labels
    )


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return write(tmp_path / "packed/train")


def checks(report: Report) -> set[str]:
    return {finding.check for finding in report.findings}


def test_a_sound_corpus_has_no_findings(split: Path) -> None:
    val = write(split.parent / "val", seed=1, labels=None)
    report = verify(split_folders(split.parent), full=True)
    assert report.findings == []
    assert report.notes == []
    assert report.splits == {
        str(folder): {"shards": 3, "samples": 10, "pairs": 30, "photos decoded": 10}
        for folder in (split, val)
    }
    assert str(report).endswith("everything is sound")
    assert verify([split]).splits[str(split)]["photos decoded"] == 3, "one in twenty of each shard"


def key_of(split: Path, sample: int) -> str:
    return read_members(split / "shard-000000.tar")[2 * sample][0].removesuffix(".jpg")


def set_box(**corners: float) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["boxes"][0].update(corners)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("box", set_box(x1=5000.0)),
        ("box", set_box(y0=-1.0)),
        ("box", set_box(x0=50.0, x1=50.0)),
        ("record", set_box(x0=float("nan"))),
        ("record", lambda record: record.update(boxes="none")),
        ("record", lambda record: record.update(captions=[])),
        ("record", lambda record: record["captions"][0].update(text="  ")),
        ("record", lambda record: record["captions"][0].update(image_key="us.president.1")),
        ("record", lambda record: record.pop("boxes_by")),
        ("record", lambda record: record.update(surprise=1)),
        ("span", lambda record: record["captions"][0]["nouns"][0].update(start=1, end=6)),
        ("schema", lambda record: record.update(schema=99)),
        ("key", lambda record: record.update(key="0" * 16)),
        ("image", lambda record: record.update(width=97)),
    ],
)
def test_a_wrong_record_is_named_by_its_place(
    split: Path, check: str, change: Callable[[dict[str, Any]], object]
) -> None:
    name = forge(split, change_record(change))
    found = [finding for finding in verify([split]).findings if finding.check == check]
    assert len(found) == 1
    assert found[0].key == key_of(split, 1)
    assert Path(found[0].shard) == split / name
    content = (split / name).read_bytes()
    assert found[0].offset is not None
    assert content[found[0].offset :][:2] in (b"\xff\xd8", b'{"'), "where the member's content begins"


def broken_json(members: Members) -> Members:
    return [members[0], (members[1][0], members[1][1][:-9]), *members[2:]]


def broken_jpeg(members: Members) -> Members:
    return [(members[0][0], members[0][1][:-200]), *members[1:]]


def interleaved(members: Members) -> Members:
    return [members[0], members[2], members[1], members[3], *members[4:]]


def dotted(members: Members) -> Members:
    return [("us.president.1.jpg", members[0][1]), ("us.president.1.json", members[1][1]), *members[2:]]


def without_record(members: Members) -> Members:
    return members[:-1]


def twice(members: Members) -> Members:
    return [*members[:2], *members]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (broken_json, "json"),
        (broken_jpeg, "image"),
        (interleaved, "members"),
        (dotted, "key"),
        (without_record, "members"),
        (without_record, "counts"),
        (twice, "duplicate_key"),
    ],
)
def test_wrong_members_are_found(split: Path, change: Callable[[Members], Members], check: str) -> None:
    forge(split, change)
    assert check in checks(verify([split], full=True))


def test_a_flipped_bit_is_found_by_the_hash(split: Path) -> None:
    path = split / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    report = verify([split])
    assert "sha256" in checks(report)
    assert {finding.shard for finding in report.findings if finding.check == "sha256"} == {str(path)}


def test_a_shard_cut_short_or_gone_is_found(split: Path) -> None:
    path = split / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    assert {"size", "sha256", "tar", "counts"} <= checks(verify([split]))
    path.unlink()
    assert {"missing_file"} <= checks(verify([split]))


@pytest.mark.parametrize("name", ["index", "pairs"])
def test_an_index_that_lies_is_found(split: Path, name: str) -> None:
    array = np.load(split / f"{name}.npy").copy()
    array["image_id"][5] += 1
    sf.write_array(split / f"{name}.npy", array)
    report = verify([split])
    assert checks(report) == {name, "table"}
    assert any("1 rows are not as in the shards; row 5" in finding.detail for finding in report.findings)
    sf.write_array(split / f"{name}.npy", array[:-1])
    assert checks(verify([split])) == {name, "table"}
    (split / f"{name}.npy").write_bytes(b"\x93NUMPY cut")
    assert checks(verify([split])) == {name, "table"}


def test_wrong_soft_labels_are_found(split: Path) -> None:
    path = sf.label_file(sf.labels_folder(split, "abc"), "shard-000001.tar", "objects")
    rows = np.load(path).copy()
    rows["probs"][3] = rows["probs"][3][::-1]
    sf.write_array(path, rows)
    report = verify([split])
    assert {(f.check, f.shard) for f in report.findings} == {("labels", str(path))}
    message = "1 rows are no probabilities in descending order, the first is row 3"
    assert any(message in finding.detail for finding in report.findings)
    sf.write_array(path, rows[:-1])
    assert checks(verify([split])) == {"labels"}


def test_labels_of_an_earlier_split_are_a_note(split: Path) -> None:
    forge(split, change_record(set_box(x0=0.0)))
    report = verify([split])
    assert "labels" not in checks(report)
    assert any("labels what this split was before" in note for note in report.notes)


def test_leaks_between_splits_are_found(split: Path) -> None:
    val = write(split.parent / "val", seed=1, labels=None)
    stolen = read_members(split / "shard-000000.tar")[0][1]

    def steal(members: Members) -> Members:
        return [(members[0][0], stolen), *members[1:]]

    forge(val, steal)
    report = verify([split, val])
    leaks = [finding for finding in report.findings if finding.check.startswith("leak")]
    assert [leak.check for leak in leaks] == ["leak_bytes"]
    assert leaks[0].key == key_of(split, 0)
    assert str(val) in leaks[0].detail

    again = write(split.parent / "test", seed=0, labels=None)
    assert {"leak_image", "leak_bytes", "leak_caption"} <= checks(verify([split, again]))


def test_the_same_bytes_twice_in_one_split_are_a_note(split: Path) -> None:
    forge(split, lambda members: [(members[0][0], members[2][1]), *members[1:]])
    report = verify([split])
    assert checks(report) == {"index"}, "the forger forgot the index"
    assert any("1 photos have the same bytes" in note for note in report.notes)


def test_a_manifest_that_lies_is_found(split: Path) -> None:
    path = split / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"pairs": 31, "fingerprint": "0" * 16}))
    assert [finding.check for finding in verify([split]).findings] == ["manifest", "manifest"]
    path.write_text(json.dumps(data | {"schema": 99}))
    assert "format version 99" in verify([split]).findings[0].detail
    path.unlink()
    assert "not a packed split" in verify([split]).findings[0].detail


def test_a_stray_shard_is_found(split: Path) -> None:
    (split / "shard-000099.tar").write_bytes((split / "shard-000000.tar").read_bytes())
    assert checks(verify([split])) == {"stray_file"}


def test_many_findings_are_counted_and_some_are_shown(split: Path) -> None:
    def all_wrong(members: Members) -> Members:
        for sample in range(len(members) // 2):
            members = change_record(
                lambda record: record["boxes"].extend([record["boxes"][0] | {"x1": 9e3}] * 10), sample=sample
            )(members)
        return members

    forge(split, all_wrong)
    report = verify([split])
    assert report.as_json()["counts"]["box"] == 40
    assert str(report).count("is not inside") == 20
    assert "and 20 more of box" in str(report)


def test_where_nothing_is_packed_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="holds no packed split"):
        split_folders(tmp_path)


def test_the_command(split: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "shards/verify.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    sound = run(str(split.parent), "--processes", "1")
    assert (sound.returncode, "everything is sound" in sound.stdout) == (0, True)
    name = forge(split, change_record(set_box(x1=5000.0)))
    wrong = run(str(split), "--json", "--full", "--processes", "2")
    report = json.loads(wrong.stdout)
    assert wrong.returncode == 1
    assert report["counts"] == {"box": 1, "index": 1}
    assert report["findings"][0]["shard"] == str(split / name)
    assert report["findings"][0]["key"] == key_of(split, 1)
    assert run("/nowhere").returncode == 2
