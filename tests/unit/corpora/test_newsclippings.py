"""The NewsCLIPpings reader on small corpora written here and on the real photos and captions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from promptmeup.corpora.newsclippings import NewsClippingsConfig, image_root, samples, splits
from promptmeup.errors import CorpusError
from promptmeup.records import Reject, Sample
from promptmeup.shard_format import image_key
from tests.support.real_data import real_data

RECORDS = [
    {"id": 1, "caption": "A river.", "image_path": "./guardian/images/0001/001.jpg"},
    {"id": 2, "caption": "The same river.", "image_path": "guardian/images//0001/../0001/001.jpg"},
    {"id": 3, "caption": "A mountain.", "image_path": "./bbc/images/0001/002.jpg"},
]


def annotation(caption: Any, image: Any, *, falsified: Any = False) -> dict[str, Any]:
    return {
        "id": caption,
        "image_id": image,
        "similarity_score": 0.5,
        "falsified": falsified,
        "source_dataset": 0,
    }


def write_corpus(root: Path, annotations: Any, records: Any = RECORDS) -> NewsClippingsConfig:
    origin = root / "visual_news/origin"
    folder = root / "news_clippings/data/merged_balanced"
    origin.mkdir(parents=True)
    folder.mkdir(parents=True)
    for name in ("guardian/images/0001/001.jpg", "bbc/images/0001/002.jpg"):
        (origin / name).parent.mkdir(parents=True)
        (origin / name).write_bytes(b"jpeg")
    (origin / "data.json").write_text(json.dumps(records))
    (folder / "train.json").write_text(json.dumps({"annotations": annotations}))
    return NewsClippingsConfig(root=root)


def read(config: NewsClippingsConfig, split: str = "train") -> tuple[list[Sample], list[Reject]]:
    rejects: list[Reject] = []
    return list(samples(config, split=split, reject=rejects.append)), rejects


def only_reject(
    root: Path, annotations: list[Any], records: Any = RECORDS, *, left: int = 0
) -> tuple[Reject, Path]:
    """Read a corpus of which all but `left` pairs are bad for one reason."""
    config = write_corpus(root, annotations, records)
    found, rejects = read(config)
    assert sum(len(sample.captions) for sample in found) == left
    assert len(rejects) == 1
    return rejects[0], config.root / "visual_news/origin"


def test_pairs_are_grouped_by_image_file_in_order(tmp_path: Path) -> None:
    config = write_corpus(
        tmp_path,
        [
            annotation(3, 3),
            annotation(3, 1, falsified=True),
            annotation(2, 1),
            annotation(1, 3, falsified=True),
        ],
    )
    found, rejects = read(config)
    river, mountain = image_key("guardian/images/0001/001.jpg"), image_key("bbc/images/0001/002.jpg")
    assert [sample.key for sample in found] == [mountain, river]
    assert [[caption.id for caption in sample.captions] for sample in found] == [["3", "1"], ["3", "2"]]
    assert [[c.image_key == s.key for c in s.captions] for s in found] == [[True, False], [False, True]]
    assert found[1].image_path == "guardian/images/0001/001.jpg"
    assert (image_root(config) / found[1].image_path).read_bytes() == b"jpeg"
    assert found[0].captions[1].text == "A river."
    assert all(sample.boxes is None for sample in found)
    assert rejects == []


def test_ids_may_be_numbers_or_text(tmp_path: Path) -> None:
    found, rejects = read(write_corpus(tmp_path, [annotation("1", 2), annotation(3, "3")]))
    assert [len(sample.captions) for sample in found] == [1, 1]
    assert rejects == []


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        (annotation(1, 3, falsified=False), False),  # claims pristine, but the files differ
        (annotation(1, 2, falsified=True), True),  # claims falsified, but both records share the file
    ],
)
def test_the_files_decide_not_the_flag(tmp_path: Path, pair: dict[str, Any], match: bool) -> None:
    found, rejects = read(write_corpus(tmp_path, [pair]))
    assert (found[0].captions[0].image_key == found[0].key) is match
    assert rejects == [], "it counts only if the image can be packed"
    assert [(r.reason, r.kept, r.pairs) for r in found[0].notes] == [("flag_disagrees", True, 1)]
    assert found[0].notes[0].item == f"caption 1, image {pair['image_id']}"


@pytest.mark.parametrize("falsified", [None, "no", 0])
def test_a_flag_of_another_type_claims_nothing(tmp_path: Path, falsified: Any) -> None:
    found, rejects = read(write_corpus(tmp_path, [annotation(1, 3, falsified=falsified)]))
    assert len(found) == 1
    assert found[0].notes == ()
    assert rejects == []


@pytest.mark.parametrize(
    ("bad", "reason", "item"),
    [
        (annotation(9, 1), "unknown_caption_id", "caption 9, image 1"),
        (annotation(1, 9), "unknown_image_id", "caption 1, image 9"),
        ({"id": 1}, "malformed_annotation", "train.json annotation 1"),
        (annotation(True, 1), "malformed_annotation", "train.json annotation 1"),
        (annotation(1.0, 1), "malformed_annotation", "train.json annotation 1"),
        ([1, 1], "malformed_annotation", "train.json annotation 1"),
        (annotation(3, 3), "duplicate_pair", "caption 3, image 3"),
    ],
)
def test_a_bad_annotation_is_counted(tmp_path: Path, bad: Any, reason: str, item: str) -> None:
    reject, _ = only_reject(tmp_path, [annotation(3, 3), bad], left=1)
    assert (reject.reason, reject.item, reject.pairs, reject.kept) == (reason, item, 1, False)


def test_the_same_file_under_another_record_is_a_duplicate_too(tmp_path: Path) -> None:
    reject, _ = only_reject(tmp_path, [annotation(1, 1), annotation(1, 2)], left=1)
    assert (reject.reason, reject.item) == ("duplicate_pair", "caption 1, image 2")


@pytest.mark.parametrize("caption", ["", " \n\t", None, 7, ["text"]])
def test_an_empty_caption_is_counted(tmp_path: Path, caption: Any) -> None:
    records = [{"id": 1, "caption": caption, "image_path": "guardian/images/0001/001.jpg"}]
    reject, _ = only_reject(tmp_path, [annotation(1, 1)], records)
    assert (reject.reason, reject.item, reject.pairs) == ("empty_caption", "caption 1, image 1", 1)


def test_the_captions_of_images_are_not_needed(tmp_path: Path) -> None:
    records = [RECORDS[0], {"id": 3, "caption": "", "image_path": "./bbc/images/0001/002.jpg"}]
    found, rejects = read(write_corpus(tmp_path, [annotation(1, 3, falsified=True)], records))
    assert [sample.key for sample in found] == [image_key("bbc/images/0001/002.jpg")]
    assert rejects == []


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "caption": "A river."},
        {"id": 1, "image_path": "guardian/images/0001/001.jpg"},
        {"id": 1, "caption": "A river.", "image_path": ""},
        {"id": 1, "caption": "A river.", "image_path": 12},
        {"id": 1, "caption": "A river.", "image_path": "a\0b"},
        {"id": 1, "caption": "A river.", "image_path": "\ud800"},
        {"id": 1, "caption": "A \ud800 river.", "image_path": "guardian/images/0001/001.jpg"},
    ],
)
def test_a_record_that_cannot_be_used_is_counted(tmp_path: Path, record: dict[str, Any]) -> None:
    reject, _ = only_reject(tmp_path, [annotation(1, 1)], [record])
    assert (reject.reason, reject.item, reject.pairs) == ("malformed_record", "caption 1, image 1", 1)


def test_a_record_without_an_id_concerns_no_pair(tmp_path: Path) -> None:
    reject, _ = only_reject(tmp_path, [annotation(1, 1)], [*RECORDS, {"caption": "?"}], left=1)
    assert (reject.reason, reject.item, reject.pairs) == ("malformed_record", "data.json record 3", 0)


def test_contradicting_records_of_one_id_are_refused(tmp_path: Path) -> None:
    records = [*RECORDS, {**RECORDS[0], "caption": "A lake."}, RECORDS[2]]  # the last repeats, and may
    reject, _ = only_reject(tmp_path, [annotation(1, 1), annotation(3, 3)], records, left=1)
    assert reject.reason == "malformed_record"
    assert "twice" in reject.detail


def test_samples_and_rejects_add_up_to_the_annotations(tmp_path: Path) -> None:
    annotations = [annotation(a, b) for a in (1, 2, 3, 9, None) for b in (1, 2, 3, 8)]
    found, rejects = read(write_corpus(tmp_path, annotations))
    left_out = sum(reject.pairs for reject in rejects if not reject.kept)
    assert sum(len(sample.captions) for sample in found) + left_out == len(annotations)
    assert sum(len(sample.captions) for sample in found) == 6  # three captions with two image files


def test_boxes_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [annotation(1, 1), annotation(3, 3)])
    box = {"x0": 1, "y0": 2.5, "x1": 30, "y1": 40, "label": "person", "score": 0.5}
    (tmp_path / "boxes.jsonl").write_text(
        json.dumps({"image_path": "./guardian/images/0001/001.jpg", "boxes": [box]}) + "\n"
    )
    found, rejects = read(config.model_copy(update={"boxes": Path("boxes.jsonl")}))
    assert found[0].boxes is not None
    assert [(b.x0, b.y1, b.label, b.score) for b in found[0].boxes] == [(1.0, 40.0, "person", 0.5)]
    assert found[1].boxes is None
    assert rejects == []


def test_a_missing_boxes_file_is_an_error(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [annotation(1, 1)]).model_copy(update={"boxes": Path("boxes.jsonl")})
    with pytest.raises(CorpusError, match=r"boxes\.jsonl is missing.*corpus\.boxes"):
        read(config)


def test_splits_are_those_on_disk(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [])
    (tmp_path / "news_clippings/data/merged_balanced/val.json").write_text("{}")
    assert splits(config) == ("train", "val")


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"test\.json is missing.*split 'test'.*splits there: train"):
        read(write_corpus(tmp_path, []), "test")


def test_a_missing_subset_names_those_that_are_there(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, []).model_copy(update={"subset": "scene_resnet_place"})
    with pytest.raises(CorpusError, match=r"scene_resnet_place is missing.*subsets there: merged_balanced"):
        read(config)


def test_a_wrong_root_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no subset is there.*corpus\.root.*news_clippings/"):
        splits(NewsClippingsConfig(root=tmp_path))


def test_missing_records_say_what_is_expected(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [])
    (tmp_path / "visual_news/origin/data.json").unlink()
    with pytest.raises(CorpusError, match=r"data\.json is missing: .*VisualNews.*corpus\.root"):
        read(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": 1},\n {"id": 2', r"data\.json is not valid JSON at line 2, column"),
        (b'["\xff"]', r"data\.json is not UTF-8 text at byte 2"),
        (b'{"1": {}}', r"data\.json: the top level must be a list of records .* a dict"),
        (b"[" + b"9" * 5000 + b"]", r"data\.json holds JSON that cannot be read"),
        (b'[{"id": 1}] []', r"line 1, column 13 \(character 12\): Extra data"),
        (b'[{"id": 1} {"id": 2}]', r"line 1, column 12 .*: Expecting '\]'"),
        (b"", r"data\.json is not valid JSON at line 1, column 1"),
    ],
)
def test_broken_records_are_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    config = write_corpus(tmp_path, [])
    (tmp_path / "visual_news/origin/data.json").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"train\.json: the top level must be an object with a list 'annotations' .* a list"),
        ('{"data": []}', r"this is a dict with keys data"),
        ('{"annotations": {}}', r"this is a dict with keys annotations"),
        ("", r"train\.json is not valid JSON at line 1, column 1"),
    ],
)
def test_broken_annotations_are_an_error(tmp_path: Path, content: str, message: str) -> None:
    config = write_corpus(tmp_path, [])
    (tmp_path / "news_clippings/data/merged_balanced/train.json").write_text(content)
    with pytest.raises(CorpusError, match=message):
        read(config)


@pytest.mark.parametrize(("split", "images", "pairs"), [("train", 3000, 30_000), ("val", 400, 4000)])
def test_real_photos_with_real_captions(split: str, images: int, pairs: int) -> None:
    config = NewsClippingsConfig(root=real_data("flickr8k_as_newsclippings"))
    found, rejects = read(config, split)
    assert Counter(reject.reason for reject in rejects) == {}
    assert len(found) == len({sample.key for sample in found}) == images
    captions = [(sample, caption) for sample in found for caption in sample.captions]
    assert len(captions) == pairs
    assert sum(caption.image_key == sample.key for sample, caption in captions) == pairs // 2
    assert all((image_root(config) / sample.image_path).is_file() for sample in found[:50])
