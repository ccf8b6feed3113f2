"""Anybody's own photos and captions: tables of every kind, and what img2dataset leaves."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from promptmeup.config import load
from promptmeup.corpora.tabular import TabularConfig, image_root, samples, splits
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.records import Reject, Sample
from promptmeup.shard_format import image_key

ROWS: list[dict[str, Any]] = [
    {"image": "photos/1.jpg", "caption": "A minister, smiling."},
    {"image": "./photos//2.jpg", "caption": 'A "quoted"\ncaption'},
    {"image": "photos/1.jpg", "caption": "צילום: שר מחייך"},
]


def read(config: TabularConfig, split: str = "train") -> tuple[list[Sample], list[Reject]]:
    rejects: list[Reject] = []
    return list(samples(config, split=split, reject=rejects.append)), rejects


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("train.jsonl", write_jsonl),
        ("train.csv", write_csv),
        ("train.tsv", write_csv),
        ("train.parquet", write_parquet),
    ],
)
def test_every_kind_of_table_gives_the_same_samples(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name, ROWS)
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": name}))
    assert rejects == []
    assert [(s.image_path, [c.text for c in s.captions]) for s in found] == [
        ("photos/1.jpg", ["A minister, smiling.", "צילום: שר מחייך"]),
        ("photos/2.jpg", ['A "quoted"\ncaption']),
    ]
    assert all(s.key == image_key(s.image_path) for s in found)
    assert all(c.image_key == s.key for s in found for c in s.captions)
    assert len({c.id for s in found for c in s.captions}) == 3


@pytest.mark.parametrize(("name", "write"), [("t.jsonl", write_jsonl), ("t.parquet", write_parquet)])
def test_a_column_may_hold_lists_and_have_other_names(tmp_path: Path, name: str, write: Any) -> None:
    write(
        tmp_path / name,
        [{"file": "a.jpg", "texts": ["One.", "Two."]}, {"file": "b.jpg", "texts": ["Three."]}],
    )
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": name}, image="file", caption="texts"))
    assert [[c.text for c in s.captions] for s in found] == [["One.", "Two."], ["Three."]]
    assert rejects == []


def test_mismatched_rows_name_the_captions_own_image(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "Of a.", "of": "a.jpg"},
        {"image": "a.jpg", "caption": "Of b.", "of": "./b.jpg"},
        {"image": "b.jpg", "caption": "Of b.", "of": "b.jpg"},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    found, _ = read(TabularConfig(root=tmp_path, files={"train": "t.jsonl"}, own_image="of"))
    assert [[c.image_key == s.key for c in s.captions] for s in found] == [[True, False], [True]]
    assert found[0].captions[1].id == found[1].captions[0].id, "one caption, shown twice"


def test_bad_rows_are_counted_with_their_place(tmp_path: Path) -> None:
    rows: list[Any] = [
        ROWS[0],
        {"image": "photos/1.jpg"},
        {"caption": "No image."},
        {"image": 7, "caption": "A number."},
        {"image": "a\0b", "caption": "NUL."},
        {"image": "\ud800.jpg", "caption": "No Unicode."},
        ["a.jpg", "b"],
        {"image": "photos/3.jpg", "caption": " \n"},
        {"image": "photos/3.jpg", "caption": "half \ud800 a character"},
        {"image": "photos/3.jpg", "caption": {"text": "x"}},
        ROWS[0],
        {"image": "photos/3.jpg", "caption": []},
    ]
    write_jsonl(tmp_path / "t.jsonl", rows)
    (tmp_path / "t.jsonl").open("a").write('{"image": "cut o')
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": "t.jsonl"}))
    assert len(found) == 1
    assert [(r.item.removeprefix("t.jsonl line "), r.reason, r.pairs) for r in rejects] == [
        ("2", "empty_caption", 1),
        ("3", "malformed_record", 1),
        ("4", "malformed_record", 1),
        ("5", "malformed_record", 1),
        ("6", "malformed_record", 1),
        ("7", "malformed_record", 1),
        ("8", "empty_caption", 1),
        ("9", "malformed_record", 1),
        ("10", "malformed_record", 1),
        ("11", "duplicate_pair", 1),
        ("12", "empty_caption", 0),
        ("13", "malformed_record", 1),
    ]
    for reject in rejects:
        (reject.item + reject.detail).encode()


def test_csv_that_is_not_utf8_is_a_counted_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\nb.jpg,fine\n")
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": "t.csv"}))
    assert [s.image_path for s in found] == ["b.jpg"]
    assert [(r.item, r.reason) for r in rejects] == [("t.csv line 2", "malformed_record")]


@pytest.mark.parametrize(("name", "write"), [("t.csv", write_csv), ("t.parquet", write_parquet)])
def test_a_missing_column_names_those_that_are_there(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name, [{"image": "a.jpg", "title": "x"}])
    config = TabularConfig(root=tmp_path, files={"train": name})
    with pytest.raises(CorpusError, match=r"no column 'caption' \(corpus.caption\); it has image, title"):
        read(config)


def test_files_that_are_not_there_or_no_tables(tmp_path: Path) -> None:
    (tmp_path / "notes.docx").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"nothing matches .*train.jsonl; in .* there are notes.docx"):
        read(TabularConfig(root=tmp_path, files={"train": "train.jsonl"}))
    with pytest.raises(CorpusError, match=r"no table that can be read: expected .jsonl, .csv"):
        read(TabularConfig(root=tmp_path, files={"train": "notes.docx"}))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(CorpusError, match=r"cannot read .*t.parquet"):
        read(TabularConfig(root=tmp_path, files={"train": "t.parquet"}))


def test_files_elsewhere(tmp_path: Path) -> None:
    """A table may lie anywhere, since its paths are relative to the root; photos and archives may not."""
    root = tmp_path / "root"
    root.mkdir()
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert len(read(TabularConfig(root=root, files={"train": str(tmp_path / "t.jsonl")}))[0]) == 2
    tar_of(tmp_path / "00000.tar", {"0.jpg": b"x", "0.txt": b"A."})
    for name in ("00000.tar", ""):
        with pytest.raises(CorpusError, match=r"is not under .*set corpus\.root"):
            read(TabularConfig(root=root, files={"train": str(tmp_path / name)}))
    with pytest.raises(CorpusError, match=r"nothing matches /nowhere/\*\.tar"):
        read(TabularConfig(root=root, files={"train": "/nowhere/*.tar"}))


def test_a_share_of_the_images_is_kept_for_validation(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 400}.jpg", "caption": f"Caption {i}."} for i in range(800)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    config = TabularConfig(root=tmp_path, files={"train": "t.jsonl"}, val_share=0.25)
    assert splits(config) == ("train", "val")
    train, val = ({s.image_path for s in read(config, split)[0]} for split in ("train", "val"))
    assert len(train | val) == 400
    assert not train & val, "no photo is in both"
    assert 70 <= len(val) <= 130
    files = ["files.train=a.jsonl", "files.val=b.jsonl"]
    with pytest.raises(ConfigError, match=r"give no files\.val with it"):
        load(TabularConfig, None, [f"root={tmp_path}", *files, "val_share=0.1"])


def test_a_share_for_validation_leaves_other_splits_alone(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.jpg", "caption": f"Caption {i}.", "own": f"{i}.jpg"} for i in range(40)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    config = TabularConfig(root=tmp_path, files={"train": "t.jsonl", "test": "t.jsonl"}, val_share=0.5)
    assert len(read(config, "test")[0]) == 40
    with pytest.raises(ConfigError, match=r"write two tables, and give files\.val"):
        load(
            TabularConfig,
            None,
            [f"root={tmp_path}", "files.train=t.jsonl", "val_share=0.1", "own_image=own"],
        )


def test_what_has_no_photo_counts_once(tmp_path: Path) -> None:
    """It is split train's: a share for validation would be refused for all that the table lost."""
    rows = [{"image": f"{i}.jpg", "caption": f"Caption {i}." if i % 10 else ""} for i in range(200)]
    write_jsonl(tmp_path / "t.jsonl", [*rows, *[{"caption": "No photo."}] * 30])
    config = TabularConfig(root=tmp_path, files={"train": "t.jsonl"}, val_share=0.2)
    train, val = ([r.reason for r in read(config, split)[1]] for split in ("train", "val"))
    assert train.count("malformed_record") == 30 and set(val) == {"empty_caption"}
    assert train.count("empty_caption") + len(val) == 20


def test_a_lone_quotation_mark_swallows_no_rows(tmp_path: Path) -> None:
    rows = ["image\tcaption", '1.jpg\t"The king', "2.jpg\tfoo", '3.jpg\t"Hello" he said']
    for more in ([], rows[1:2]):
        (tmp_path / "t.tsv").write_text("\n".join([*rows, *more]) + "\n")
        with pytest.raises(
            CorpusError, match=r"t\.tsv from line 2 on: .*begins with a quotation mark is quoted"
        ):
            read(TabularConfig(root=tmp_path, files={"train": "t.tsv"}))
    (tmp_path / "t.tsv").write_text('"image" \tcaption\n1.jpg\tfoo\n')
    with pytest.raises(CorpusError, match=r"t\.tsv from line 1 on: "):
        read(TabularConfig(root=tmp_path, files={"train": "t.tsv"}))
    (tmp_path / "t.tsv").write_text("\n".join(rows[:1] + rows[2:3]) + '\n1.jpg\t"""The king"" he"\n')
    found, _ = read(TabularConfig(root=tmp_path, files={"train": "t.tsv"}))
    assert [s.captions[0].text for s in found] == ["foo", '"The king" he']


def test_photos_inside_a_parquet_file_are_refused(tmp_path: Path) -> None:
    for image in (b"jpeg" * 1000, {"bytes": b"jpeg", "path": "1.jpg"}):
        write_parquet(tmp_path / "t.parquet", [{"image": image, "caption": "A."}])
        with pytest.raises(CorpusError, match="the photos themselves, and must hold their paths"):
            read(TabularConfig(root=tmp_path, files={"train": "t.parquet"}))
    write_jsonl(tmp_path / "t.jsonl", [{"image": ["x" * 5000], "caption": "A."}])
    _, (reject,) = read(TabularConfig(root=tmp_path, files={"train": "t.jsonl"}))
    assert reject.reason == "malformed_record" and len(reject.detail) < 300


def test_names_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    """As from an archive that was packed elsewhere."""
    (tmp_path / "out").mkdir()
    name = os.fsdecode(b"caf\xe9")
    for stem in (name, "tea"):
        (tmp_path / f"out/{stem}.jpg").write_bytes(b"photo")
        (tmp_path / f"out/{stem}.txt").write_text("A cup.")
    write_jsonl(tmp_path / "boxes.jsonl", [{"image_path": f"out/{name}.jpg", "boxes": []}])
    config = TabularConfig(root=tmp_path, files={"train": "out"}, boxes=Path("boxes.jsonl"))
    found, rejects = read(config)
    assert [s.image_path for s in found] == ["out/tea.jpg"]
    assert [(r.item, r.reason) for r in rejects] == [
        ("out/caf\\udce9.jpg", "malformed_record"),
        ("boxes.jsonl line 1", "malformed_boxes"),
    ]
    assert all(json.dumps(r.__dict__, ensure_ascii=False).encode() for r in rejects)
    (tmp_path / os.fsdecode(b"t\xe9.tar")).write_bytes(b"no archive" * 100)
    _, (reject,) = read(TabularConfig(root=tmp_path, files={"train": "*.tar"}))
    assert reject.item == "t\\udce9.tar"


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_img2datasets_tars_are_read_in_place(tmp_path: Path) -> None:
    record = json.dumps({"caption": "From json.", "url": "http://x", "status": "success"}).encode()
    tar_of(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": b"first photo",
            "000000000.txt": "Ein Zug hält.".encode(),
            "000000000.json": record,
            "000000001.json": record,
            "000000001.jpg": b"second",
            "000000002.txt": b"A caption without a photo.",
            "000000003.jpg": b"a photo without a caption",
        },
    )
    (tmp_path / "00000_stats.json").write_text("{}")
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": "*.tar"}))
    content = (tmp_path / "00000.tar").read_bytes()
    assert [c.text for s in found for c in s.captions] == ["Ein Zug hält.", "From json."]
    places = [s.member for s in found]
    assert all(place is not None for place in places)
    assert [content[place[0] :][: place[1]] for place in places if place] == [b"first photo", b"second"]
    assert [s.name for s in found] == [f"00000.tar@{place[0]}" for place in places if place]
    assert len({s.key for s in found}) == 2
    assert [(r.item, r.reason) for r in rejects] == [
        ("00000.tar: 000000002", "malformed_record"),
        ("00000.tar: 000000003", "empty_caption"),
    ]


def test_a_tar_cut_off_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    members = {f"{i:09}.{kind}": b"x" * 2000 for i in range(4) for kind in ("jpg", "txt")}
    tar_of(tmp_path / "00000.tar", members)
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: 5 * 2560 + 700])
    found, rejects = read(TabularConfig(root=tmp_path, files={"train": "00000.tar"}))
    assert 2 <= len(found) <= 3
    assert any("cut off" in reject.detail for reject in rejects)


@pytest.mark.parametrize("damage", ["hole", "checksum", "between", "header", "preallocated"])
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path: Path, damage: str) -> None:
    """A header that tarfile cannot read is an archive's end to it."""
    members = {f"{i:09}.{kind}": b"x" * 2000 for i in range(6) for kind in ("jpg", "txt")}
    path, config = tmp_path / "00000.tar", TabularConfig(root=tmp_path, files={"train": "00000.tar"})
    tar_of(path, members)
    whole = path.read_bytes()
    assert [len(part) for part in read(config)] == [6, 0]
    fourth = 6 * 2560  # three samples of two members, each a header and four blocks
    hole = bytes(len(whole) - fourth)
    path.write_bytes(
        {
            "hole": whole[:fourth] + bytes(2560) + whole[fourth + 2560 :],
            "checksum": whole[:fourth] + b"Z" * 512 + whole[fourth + 512 :],
            "between": whole[:fourth],
            "header": whole[: fourth + 100],
            "preallocated": whole[:fourth] + hole + bytes(1 << 20),
        }[damage]
    )
    found, rejects = read(config)
    assert len(found) == 3
    assert [(r.item, r.reason, r.pairs, r.kept) for r in rejects] == [
        ("00000.tar", "malformed_record", 1, False)
    ]


def test_boxes_of_photos_in_a_tar(tmp_path: Path) -> None:
    """They are named as in rejects.jsonl; the name of the tar alone is no photo's."""
    tar_of(tmp_path / "00000.tar", {f"{i}.{kind}": b"x" for i in range(3) for kind in ("jpg", "txt")})
    config = TabularConfig(root=tmp_path, files={"train": "00000.tar"}, boxes=Path("boxes.jsonl"))
    (tmp_path / "boxes.jsonl").write_text("")
    second = read(config)[0][1]
    box = {"x0": 1, "y0": 2, "x1": 3, "y1": 4, "label": "person", "score": 0.5}
    lines = [{"image_path": name, "boxes": [box]} for name in ("00000.tar", second.name)]
    write_jsonl(tmp_path / "boxes.jsonl", lines)
    assert [s.boxes is None for s in read(config)[0]] == [True, False, True]


def test_img2datasets_files_are_read_from_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out/00000"
    folder.mkdir(parents=True)
    for name in ("000000000", "000000001"):
        (folder / f"{name}.jpg").write_bytes(b"photo")
        (folder / f"{name}.txt").write_text(f"Caption {name}.")
    (folder / "000000001.json").write_text("{")
    config = TabularConfig(root=tmp_path, files={"train": "out"})
    found, rejects = read(config)
    assert [s.image_path for s in found] == ["out/00000/000000000.jpg", "out/00000/000000001.jpg"]
    assert [s.captions[0].text for s in found] == ["Caption 000000000.", "Caption 000000001."]
    assert (image_root(config) / found[0].image_path).is_file()
    assert rejects == []


def test_boxes_come_from_a_file_as_with_every_corpus(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    box = {"x0": 1, "y0": 2, "x1": 3, "y1": 4, "label": "person", "score": 0.5}
    write_jsonl(tmp_path / "boxes.jsonl", [{"image_path": "photos/2.jpg", "boxes": [box]}])
    found, _ = read(TabularConfig(root=tmp_path, files={"train": "t.jsonl"}, boxes=Path("boxes.jsonl")))
    assert [s.boxes is None for s in found] == [True, False]
