"""JSON lines of one's own for both downstream tasks, and the configuration of all three kinds."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import Config, load
from promptmeup.corpora.extraction import ExtractionCorpus, read, statistics
from promptmeup.corpora.extraction_jsonl import JsonlConfig
from promptmeup.corpora.mnre import MnreConfig
from promptmeup.corpora.twitter import TwitterConfig
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.records import Box, RelationInstance, TaggedSentence, WordSpan
from tests.support.real_data import real_data


def sentence(**changes: Any) -> dict[str, Any]:
    words, tags = ["Ada", "Byron", "writes"], ["B-PER", "I-PER", "O"]
    return {"id": "a", "words": words, "tags": tags, "image": None, **changes}


def instance(**changes: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "words": ["Ada", "Byron", "of", "London"],
        "head": [0, 2],
        "tail": [3, 4],
        "relation": "lives_in",
        "image": None,
        **changes,
    }


def write_corpus(root: Path, lines: list[Any], *, task: str = "entities") -> JsonlConfig:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in lines)
    (root / "train.jsonl").write_text(text)
    return JsonlConfig.model_validate({"task": task, "root": root, "files": {"train": "train.jsonl"}})


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"jpeg")


def test_sentences(tmp_path: Path) -> None:
    put(tmp_path / "photos/a.jpg")
    box = {"x0": 1, "y0": 2, "x1": 3, "y1": 4, "label": "person", "score": 0.5}
    lines = [
        sentence(image="photos/a.jpg", boxes=[box], source="further keys"),
        "",
        sentence(id="b", tags=["I-PER", "O", "B-LOC"], image="./photos/gone.jpg"),
        sentence(id="d", image="photos/a.jpg", crops=["photos/gone.jpg", "photos/a.jpg"]),
        sentence(id="c"),
    ]
    config = write_corpus(tmp_path, lines)
    first, second, cropped, third = read(config, "train")
    assert first == TaggedSentence(
        id="a",
        words=("Ada", "Byron", "writes"),
        tags=("B-PER", "I-PER", "O"),
        image_name="photos/a.jpg",
        image=tmp_path / "photos/a.jpg",
        boxes=(Box(1.0, 2.0, 3.0, 4.0, "person", 0.5),),
    )
    assert (second.image_name, second.image, third.image_name) == ("./photos/gone.jpg", None, None)
    assert (cropped.crops, cropped.missing_crops) == ((tmp_path / "photos/a.jpg",), 1)
    found = statistics(config, "train")
    assert (found.sentences, found.words, found.broken_tags) == (4, 12, 1)
    assert found.entities == {"LOC": 1, "PER": 3}
    assert found.entities_lenient == {"LOC": 1, "PER": 4}
    assert (found.images, found.missing_images, found.without_image) == (1, 1, 2)
    assert (found.crops, found.missing_crops) == (1, 1)
    assert len(found.sha256["train.jsonl"]) == 64


def test_instances(tmp_path: Path) -> None:
    lines = [instance(), instance(id="b", relation="None", tail=[1, 4])]
    config = write_corpus(tmp_path, lines, task="relations")
    first, _ = read(config, "train")
    assert isinstance(first, RelationInstance)
    assert (first.head, first.tail) == (WordSpan(0, 2, ("Ada", "Byron")), WordSpan(3, 4, ("London",)))
    found = statistics(config, "train")
    assert (found.relations, found.overlapping_spans) == ({"None": 1, "lives_in": 1}, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"expected a JSON object"),
        ("[]", r"expected a JSON object"),
        ("{}", r'has no "id"; its keys are none'),
        (sentence(id=7), r'"id" must be text that is not empty; this is 7'),
        (sentence(id=""), r'"id" must be text'),
        (sentence(id="first"), r"\"id\" is 'first', as in line 1; make them differ"),
        (sentence(words="Ada"), r'"words" must be a list of words'),
        (sentence(words=[]), r'"words" must be a list of words'),
        (sentence(words=["Ada", "", "x"]), r'"words" must be a list of words, none of them empty'),
        (sentence(words=["\ud800", "a", "b"]), r'"words" must be a list of words'),
        (sentence(tags=["O"]), r'"tags" has 1 entries for 3 "words"'),
        (sentence(tags=["PER", "O", "O"]), r'"tags" must be a list of O, B-TYPE and I-TYPE'),
        (sentence(tags=["S-PER", "O", "O"]), r'"tags" must be'),
        (sentence(tags="OOO"), r'"tags" must be'),
        (sentence(tags=[["O"], "O", "O"]), r'"tags" must be'),
        (sentence(image=3), r'"image" must be a path relative to data\.root, or null; this is 3'),
        (sentence(image=" "), r'"image": the name of a photo must be text'),
        (sentence(image="../a.jpg"), r'"image": photo \.\./a\.jpg: the path leads out of'),
        (sentence(image="/a.jpg"), r'"image": photo /a\.jpg: the path leads out of'),
        (sentence(boxes=[{"x0": 1}]), r'"boxes" must be a list of objects'),
        (sentence(boxes=3), r'"boxes" must be a list of objects'),
        (sentence(crops="a.jpg"), r'"crops" must be a list of paths'),
        (sentence(crops=["../a.jpg"]), r'"crops": photo \.\./a.jpg: '),
        ({key: value for key, value in sentence().items() if key != "image"}, r'has no "image"; its keys'),
        (instance(), r'has no "tags"; its keys are id, words, head'),
    ],
)
def test_a_malformed_sentence_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=r"train\.jsonl line 2:? ?" + message):
        read(write_corpus(tmp_path, [sentence(id="first"), bad]), "train")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (instance(head=[2, 2]), r'"head" must be \[start, end\] .* <= 4; this is \[2, 2\]'),
        (instance(head=[0, 5]), r'"head" must be'),
        (instance(tail=[-1, 2]), r'"tail" must be'),
        (instance(tail=[0, 1, 2]), r'"tail" must be'),
        (instance(tail="London"), r'"tail" must be'),
        (instance(tail=[False, True]), r'"tail" must be'),
        (instance(relation=""), r'"relation" must be text'),
        (instance(relation=None), r'"relation" must be text'),
        (sentence(), r'has no "relation"; its keys are id, words, tags, image'),
    ],
)
def test_a_malformed_instance_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    config = write_corpus(tmp_path, [instance(id="first"), bad], task="relations")
    with pytest.raises(CorpusError, match=r"train\.jsonl line 2:? ?" + message):
        read(config, "train")


def test_a_missing_file_or_split_is_named(tmp_path: Path) -> None:
    config = write_corpus(tmp_path, [])
    with pytest.raises(CorpusError, match=r"no split 'val': data\.files names train"):
        read(config, "val")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"train\.jsonl is missing: data\.files\.train names it"):
        read(config, "train")


class Command(Config):
    corpus: ExtractionCorpus


def test_the_kind_chooses_the_reader(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for kind, schema, more in (
        ("twitter", TwitterConfig, ""),
        ("mnre", MnreConfig, ""),
        ("jsonl", JsonlConfig, ", task: relations, files: {train: a.jsonl}"),
    ):
        file.write_text(f"corpus: {{kind: {kind}, root: here{more}}}\n")
        assert isinstance(load(Command, file, []).corpus, schema)
    file.write_text("corpus: {kind: twitter, root: here, image: there}\n")
    with pytest.raises(ConfigError, match=r"corpus\.image.*did you mean 'corpus\.images'"):
        load(Command, file, [])


def test_real_photos_with_their_real_tags(tmp_path: Path) -> None:
    texts = real_data("twitter_image_sample/twitter_2017/texts/train/train.json")
    images = real_data("twitter_image_sample/twitter_2017/images/train")
    lines = [json.loads(text) for text in texts.read_text().splitlines()]
    rows = [
        {"id": row["id"], "words": row["tokens"], "tags": row["label"], "image": row["image_id"]}
        for row in lines
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for image in images.glob("[1-4].jpg"):
        put(tmp_path / image.name)
    files = {"train": "train.jsonl"}
    found = statistics(JsonlConfig(task="entities", root=tmp_path, files=files), "train")
    assert (found.sentences, found.images, found.missing_images, found.broken_tags) == (5, 4, 1, 0)
    assert sum(found.entities.values()) > 0


def test_files_that_call_things_otherwise_and_photos_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "photos/train/a.jpg")
    row = {"id": "a", "tokens": ["Ada"], "label": ["B-PER"], "image_id": "a.jpg", "words": "not these"}
    plain = write_corpus(tmp_path, [row])
    keys = {"words": "tokens", "tags": "label", "image": "image_id"}
    settings = plain.model_dump() | {"keys": keys, "images": Path("photos")}
    (found,) = read(JsonlConfig.model_validate(settings), "train")
    assert isinstance(found, TaggedSentence)
    assert (found.words, found.tags) == (("Ada",), ("B-PER",))
    assert found.image == tmp_path / "photos/train/a.jpg"
    with pytest.raises(CorpusError, match=r"photos2 is no folder; correct it, or leave images out"):
        read(JsonlConfig.model_validate(settings | {"images": Path("photos2")}), "train")
    (tmp_path / "bad.yaml").write_text(
        "corpus: {kind: jsonl, task: entities, root: x, files: {a: b}, keys: {wrods: t}}"
    )

    class Command(Config):
        corpus: ExtractionCorpus

    with pytest.raises(ConfigError, match=r"wrods"):
        load(Command, tmp_path / "bad.yaml", [])
