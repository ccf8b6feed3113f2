"""The MNRE reader on small files written here, and on the real tweets and photos."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from promptmeup.corpora.extraction import statistics
from promptmeup.corpora.mnre import MnreConfig, label_files, read, relations
from promptmeup.errors import CorpusError
from promptmeup.records import WordSpan
from tests.support.real_data import real_data

RELATIONS = {"None": 0, "/per/loc/place_of_birth": 2, "/per/per/peer": 1}


def line(**changes: Any) -> dict[str, Any]:
    return {
        "token": ["RT", "@a", ":", "Ada", "Byron", "'s", "Oslo"],
        "h": {"name": "Ada Byron", "pos": [3, 5]},
        "t": {"name": "Oslo", "pos": [6, 7]},
        "img_id": "twitter_1.jpg",
        "relation": "/per/loc/place_of_birth",
        **changes,
    }


def write_corpus(root: Path, lines: Any, *, name: str = "txt/ours_train.txt") -> MnreConfig:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines if isinstance(lines, str) else "".join(f"{fields!r}\n" for fields in lines))
    (root / "ours_rel2id.json").write_text(json.dumps(RELATIONS))
    return MnreConfig(root=root)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"jpeg")


def test_an_instance(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [line(), line(relation="None", caption=["further keys"])])
    put(tmp_path / "img_org/train/twitter_1.jpg")
    first, second = read(config, "train")
    assert (first.id, first.relation, second.id, second.relation) == (
        "1",
        "/per/loc/place_of_birth",
        "2",
        "None",
    )
    assert first.head == WordSpan(3, 5, ("Ada", "Byron"))
    assert first.tail == WordSpan(6, 7, ("Oslo",))
    assert first.image_name == "twitter_1.jpg"
    assert first.image == tmp_path / "img_org/train/twitter_1.jpg"


def test_overlapping_spans_are_kept_and_counted(tmp_path: Path) -> None:
    inner = line(t={"name": "Byron", "pos": [4, 5]})
    same = line(t={"name": "Ada Byron", "pos": [3, 5]})
    beside = line(t={"name": "'s", "pos": [5, 6]})
    config = write_corpus(tmp_path, [inner, same, beside])
    assert read(config, "train")[0].tail == WordSpan(4, 5, ("Byron",))
    assert statistics(config, "train").overlapping_spans == 2


def test_relations_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [line()])
    assert relations(config) == ("None", "/per/per/peer", "/per/loc/place_of_birth")


@pytest.mark.parametrize(
    "name",
    [
        "txt/ours_val.txt",
        "txt/ours_dev.txt",
        "ours_val.txt",
        "mnre_txt/mnre_val .txt",  # the original's name, with its space
        "mnre_txt/mnre_val.txt",
        "mnre_val .txt",
    ],
)
def test_the_names_under_which_the_split_is_known(tmp_path: Path, name: str) -> None:
    config = write_corpus(tmp_path, [line()], name=name)
    assert [len(read(config, split)) for split in ("val", "dev")] == [1, 1]
    assert label_files(config, "val")[0] == tmp_path / name
    assert set(statistics(config, "val").sha256) == {Path(name).name, "ours_rel2id.json"}


def test_windows_line_ends_and_empty_lines(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [])
    (tmp_path / "txt/ours_train.txt").write_bytes(f"{line()!r}\r\n\r\n{line()!r}".encode())
    assert [row.id for row in read(config, "train")] == ["1", "3"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{'token': ['a'", r"is no Python literal: expected a Python dict"),
        ("__import__('os').getcwd()", r"is no Python literal"),
        ('{"token": null}', r"is no Python literal"),
        ("{[]: 1}", r"is no Python literal"),
        ("(" * 5000, r"is no Python literal"),
        ("['token']", r"expected a Python dict .* found a list"),
        ("{'token': ['a']}", r"has no 'h': expected"),
        (repr(line(token="RT @a")), r"'token' must be a list of words, this is 'RT @a'"),
        (repr(line(token=["a", ""])), r"'token' must be a list of words"),
        (repr(line(token=[])), r"'token' must be a list of words"),
        (repr(line(img_id=17)), r"'img_id' must be text, this is '17'"),
        (repr(line(img_id="")), r"the name of a photo must be text and not empty"),
        (repr(line(img_id="../../a.jpg")), r"photo \.\./\.\./a\.jpg: the path leads out of"),
        (
            repr(line(relation="/per/per/pere")),
            r"relation '/per/per/pere' is none of the 3 in ours_rel2id\.json",
        ),
        (repr(line(relation=["None"])), r"'relation' must be text"),
        (repr(line(h="Ada")), r"h must be \{'name'.* 0 <= start < end <= 7, this is 'Ada'"),
        (repr(line(h={"name": "Ada", "pos": [3, 3]})), r"h must be .* start < end"),
        (repr(line(t={"name": "Oslo", "pos": [6, 8]})), r"t must be .* end <= 7"),
        (repr(line(t={"name": "Oslo", "pos": [-1, 7]})), r"t must be"),
        (repr(line(t={"name": "Oslo", "pos": [6]})), r"t must be"),
        (repr(line(t={"name": "Oslo", "pos": [6.0, 7.0]})), r"t must be"),
        (repr(line(h={"name": "@a", "pos": [True, 2]})), r"h must be"),
        # an end that belongs to the mention
        (
            repr(line(h={"name": "Ada Byron", "pos": [3, 4]})),
            r"h\.name is 'Ada Byron', but words \[3, 4\) are 'Ada'",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    (tmp_path / "img_org/train").mkdir(parents=True)
    config = write_corpus(tmp_path, f"{line()!r}\n{bad}\n")
    with pytest.raises(CorpusError, match=r"ours_train\.txt line 2:? ?" + message):
        read(config, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"ours_rel2id\.json cannot be read as JSON"),
        ("[]", r"expected an object of relations and their ids"),
        ("{}", r"expected an object of relations and their ids"),
        ('{"None": "0"}', r"expected an object of relations and their ids"),
        ('{"None": 0, "a": 2}', r"expected the ids 0 to 1, each once, found \[0, 2\]"),
        ('{"None": 0, "a": 0}', r"expected the ids 0 to 1, each once, found \[0, 0\]"),
    ],
)
def test_a_list_of_relations_that_is_something_else(tmp_path: Path, content: str, message: str) -> None:
    config = write_corpus(tmp_path, [line()])
    (tmp_path / "ours_rel2id.json").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read(config, "train")


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [line()])
    with pytest.raises(CorpusError, match=r"split 'test' is missing: .*txt/ours_test\.txt or .*data\.root"):
        read(config, "test")
    (tmp_path / "ours_rel2id.json").unlink()
    with pytest.raises(CorpusError, match=r"list of relations is missing: expected .*ours_rel2id\.json"):
        read(config, "train")


def test_photos_are_of_the_split_and_absent_ones_are_counted(tmp_path: Path) -> None:
    lines = [line(), line(), line(img_id="gone.jpg"), line(img_id="gone.jpg")]
    config = write_corpus(tmp_path, lines, name="txt/ours_val.txt")
    for name in ("val/twitter_1.jpg", "val/inf.png", "train/gone.jpg"):
        put(tmp_path / "img_org" / name)
    found = statistics(config, "dev")
    assert (found.sentences, found.images, found.missing_images, found.without_image) == (4, 1, 1, 2)


def test_crops_are_of_the_line(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [line(), line(), line()], name="txt/ours_val.txt")
    torch.save({1: ["1_a.png", "1_b.png"], 2: ["gone.png"]}, tmp_path / "txt/mre_dev_dict.pth")
    for name in ("0_a.png", "1_a.png", "1_b.png"):
        put(tmp_path / "img_vg/val/crops" / name)
    found = read(config, "val")
    assert [[path.name for path in row.crops] for row in found] == [[], ["1_a.png", "1_b.png"], []]
    assert [row.missing_crops for row in found] == [0, 0, 1]


@pytest.mark.parametrize(
    ("split", "instances", "images", "none", "overlapping", "sha256"),
    [("train", 12_247, 7356, 7744, 59, "1cc34438"), ("val", 1624, 931, 1000, 3, "c76865179")],
)
def test_the_real_instances(
    split: str, instances: int, images: int, none: int, overlapping: int, sha256: str
) -> None:
    config = MnreConfig(root=real_data("mnre"))
    found = statistics(config, split)
    assert (found.sentences, found.overlapping_spans) == (instances, overlapping)
    assert found.images + found.missing_images == images
    assert set(found.relations) == set(relations(config))
    assert len(found.relations) == 23
    assert found.relations["None"] == none
    assert found.sha256[f"ours_{split}.txt"].startswith(sha256)


@pytest.mark.parametrize(("split", "images"), [("train", 5), ("val", 2), ("test", 5)])
def test_the_real_photos(split: str, images: int) -> None:
    root = real_data("mnre_image_sample")
    found = statistics(MnreConfig(root=root), split)
    assert (found.sentences, found.images, found.missing_images) == (5, images, 0)
    assert (found.crops, found.missing_crops) == (0, 0)  # the sample has not the lists that say whose


@pytest.mark.parametrize(("split", "images"), [("train", 5), ("val", 2)])
def test_the_real_text_with_the_few_real_photos(split: str, images: int) -> None:
    photos = real_data("mnre_image_sample/img_org")
    found = statistics(MnreConfig(root=real_data("mnre"), images=photos), split)
    assert found.images == images
    assert found.missing_images == {"train": 7356, "val": 931}[split] - images


def test_the_real_crops_of_one_line(tmp_path: Path) -> None:
    sample = real_data("mnre_image_sample")
    config = MnreConfig(root=tmp_path, images=sample / "img_org", crops=sample / "img_vg")
    (tmp_path / "ours_rel2id.json").write_bytes((sample / "ours_rel2id.json").read_bytes())
    (tmp_path / "ours_test.txt").write_bytes((sample / "txt/ours_test.txt").read_bytes())
    names = [f"0_pred_yolo_crop_{number}.png" for number in range(3)]
    torch.save({0: names}, tmp_path / "mre_test_dict.pth")
    assert [path.name for path in read(config, "test")[0].crops] == names
