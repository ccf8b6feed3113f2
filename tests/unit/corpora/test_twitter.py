"""The Twitter-2015/2017 reader on small files written here, and on the real tweets and photos."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from promptmeup.corpora.extraction import read as read_any
from promptmeup.corpora.extraction import statistics
from promptmeup.corpora.twitter import TwitterConfig, label_files, read
from promptmeup.errors import CorpusError
from promptmeup.records import TaggedSentence
from tests.support.real_data import real_data

TWEETS = "IMGID:17\nRT\tO\nGeorge\tB-PER\nZimmerman\tI-PER\n\nIMGID:18\nin\tO\nOslo\tB-LOC\n\n"


def write_corpus(root: Path, text: str | bytes = TWEETS, *, name: str = "train.txt") -> TwitterConfig:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return TwitterConfig(root=root)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"jpeg")
    return path


def test_tweets_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert read(write_corpus(tmp_path), "train") == (
        TaggedSentence(
            id="17",
            words=("RT", "George", "Zimmerman"),
            tags=("O", "B-PER", "I-PER"),
            image_name="17.jpg",
        ),
        TaggedSentence(id="18", words=("in", "Oslo"), tags=("O", "B-LOC"), image_name="18.jpg"),
    )


@pytest.mark.parametrize(
    "text",
    [
        TWEETS.replace("\n", "\r\n"),
        TWEETS.rstrip("\n"),  # peers lose the last tweet
        TWEETS + "\n\n",
        "\n" + TWEETS.replace("\n\n", "\n\n\n"),
        "\ufeff" + TWEETS,
        TWEETS.replace("IMGID:17", "IMGID:17 "),
    ],
)
def test_line_ends_empty_lines_and_a_byte_order_mark_do_not_matter(tmp_path: Path, text: str) -> None:
    assert read(write_corpus(tmp_path / "a", text), "train") == read(write_corpus(tmp_path / "b"), "train")


@pytest.mark.parametrize("word", ["\xa0", " ", "\u2028", "\x85", "a b", "IMGID:3", "\U0001f602"])
def test_only_the_tab_separates_and_only_a_newline_ends(tmp_path: Path, word: str) -> None:
    found = read(write_corpus(tmp_path, f"IMGID:1\nx\tO\n{word}\tO\ny\tB-PER\n"), "train")
    assert [(row.words, row.tags) for row in found] == [(("x", word, "y"), ("O", "O", "B-PER"))]


def test_tags_are_kept_as_they_are_and_broken_ones_counted(tmp_path: Path) -> None:
    tags = ("I-PER", "I-PER", "B-LOC", "I-OTHER", "O", "I-LOC", "B-PER", "I-PER", "B-PER")
    lines = "".join(f"w\t{tag}\n" for tag in tags)
    config = write_corpus(tmp_path, f"IMGID:1\n{lines}\nIMGID:2\nw\tI-PER\n")
    assert [row.tags for row in read(config, "train")] == [tags, ("I-PER",)]
    found = statistics(config, "train")
    assert found.broken_tags == 4  # the second sentence's begins anew
    assert found.entities == {"LOC": 1, "PER": 2}
    assert found.entities_lenient == {"LOC": 2, "OTHER": 1, "PER": 4}
    assert (found.sentences, found.words, found.relations) == (2, 10, {})


@pytest.mark.parametrize("name", ["valid.txt", "dev.txt", "val.txt"])
@pytest.mark.parametrize("split", ["valid", "dev", "val"])
def test_dev_has_three_spellings(tmp_path: Path, name: str, split: str) -> None:
    config = write_corpus(tmp_path, name=name)
    assert len(read(config, split)) == 2
    assert label_files(config, split) == (tmp_path / name,)


def test_a_split_in_two_files_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, name="dev.txt")
    config = write_corpus(tmp_path, name="valid.txt")
    with pytest.raises(CorpusError, match=r"split 'dev' is there more than once: keep one of .*valid\.txt"):
        read(config, "dev")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"split 'val' is missing: .*val\.txt or .*dev\.txt; set data\.root"
    ):
        read(write_corpus(tmp_path), "val")


def test_an_unknown_split_names_those_allowed(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no split 'trian'; allowed are train, val"):
        read(write_corpus(tmp_path), "trian")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("IMGID:1\nx O\n", r"line 2: expected word TAB tag, .* found 'x O'"),
        ("IMGID:1\nx\n", r"line 2: expected word TAB tag"),
        ("IMGID:1\nx\tO\tO\n", r"line 2: .* found 'x\\tO\\tO'"),
        ("IMGID:1\n\tO\n", r"line 2: expected word TAB tag"),
        ("IMGID:1\nx\tPER\n", r"line 2: .* the tag O, B-TYPE or I-TYPE, found 'x\\tPER'"),
        ("IMGID:1\nx\tB-\n", r"line 2: .* the tag O, B-TYPE or I-TYPE"),
        ("IMGID:1\nx\tO \n", r"line 2: .* the tag O, B-TYPE or I-TYPE"),
        ("x\tO\n", r"line 1: expected a line IMGID:NUMBER before the words"),
        ("IMGID:1\nx\tO\n\ny\tO\n", r"line 4: expected a line IMGID:NUMBER before the words"),
        ("IMGID:1\nx\tO\nIMGID:2\ny\tO\n", r"line 3: expected an empty line before the next tweet"),
        ("IMGID:1\n\nIMGID:2\ny\tO\n", r"line 1: tweet 1 has no words"),
        ("IMGID:2\ny\tO\n\nIMGID:1\n", r"line 4: tweet 1 has no words"),
        ("IMGID:\nx\tO\n", r"line 1: expected the photo's number behind IMGID:"),
        ("IMGID:../1\nx\tO\n", r"line 1: photo \.\./1\.jpg: the path leads out of"),
        ("IMGID:1\0\nx\tO\n", r"line 1: the name of a photo must be text"),
        (b"IMGID:1\nx\tO\n\xff\tO\n", r"line 3 is not UTF-8 text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(CorpusError, match=r"train\.txt " + message):
        read(write_corpus(tmp_path, text), "train")


@pytest.mark.parametrize(
    ("photo", "images"),
    [
        ("twitter2015_images/17.jpg", None),
        ("twitter2015/images/17.jpg", None),
        ("twitter2015_images/train/17.jpg", None),
        ("photos/17.jpg", "../photos"),
    ],
)
def test_photos_are_found_where_people_put_them(tmp_path: Path, photo: str, images: str | None) -> None:
    root = tmp_path / "twitter2015"
    config = write_corpus(root).model_copy(update={"images": images and Path(images)})
    file = put(tmp_path / photo)
    found = read(config, "train")
    assert found[0].image is not None
    assert found[0].image.samefile(file)
    assert (found[1].image_name, found[1].image) == ("18.jpg", None)


def test_absent_photos_are_counted_and_none_takes_their_place(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    for name in ("17.jpg", "inf.png", "18.png"):
        put(tmp_path / "images" / name)
    put(tmp_path / "images/test/18.jpg")  # another split's photo of that number
    found = statistics(config, "train")
    assert (found.images, found.missing_images, found.without_image) == (1, 1, 1)


def test_a_folder_that_the_configuration_names_must_be_there(tmp_path: Path) -> None:
    config = write_corpus(tmp_path).model_copy(update={"images": Path("photos")})
    with pytest.raises(CorpusError, match=r"data\.images: .*photos is no folder; correct it, or leave"):
        read(config, "train")


@pytest.mark.parametrize("zipped", [True, False])
def test_crops_come_from_the_list_that_says_whose_they_are(tmp_path: Path, zipped: bool) -> None:
    root = tmp_path / "twitter2015"
    config = write_corpus(root, name="valid.txt")
    names = {"17.jpg": ["b.png", "a.png", "gone.png"], "99.jpg": ["a.png"]}
    torch.save(names, root / "twitter2015_val_dict.pth", _use_new_zipfile_serialization=zipped)
    folder = tmp_path / "twitter2015_aux_images/val/crops"
    for name in ("a.png", "b.png"):
        put(folder / name)
    first, second = read(config, "dev")
    assert [path.name for path in first.crops] == ["b.png", "a.png"]
    assert (first.missing_crops, second.crops, second.missing_crops) == (1, (), 0)
    found = statistics(config, "dev")
    assert (found.crops, found.missing_crops) == (2, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Path, r"cannot be read as a dict .*it holds a pathlib.*Path"),  # code to run is never run
        (["a"], r"expected a dict of lists of names"),
        ({"17.jpg": "a.png"}, r"expected a dict of lists of names"),
        (None, r"cannot be read as a dict .*copy it again, or remove it"),
    ],
)
def test_a_list_of_crops_that_is_something_else(tmp_path: Path, content: Any, message: str) -> None:
    root = tmp_path / "twitter2015"
    config = write_corpus(root)
    put(tmp_path / "twitter2015_aux_images/train/crops/a.png")
    if content is None:
        put(root / "twitter2015_train_dict.pth")
    else:
        torch.save(content, root / "twitter2015_train_dict.pth")
    with pytest.raises(CorpusError, match=r"twitter2015_train_dict\.pth.* " + message):
        read(config, "train")


@pytest.mark.parametrize(
    ("split", "tweets", "entities", "broken", "sha256"),
    [
        ("train", 4000, {"PER": 2217, "LOC": 2091, "ORG": 927, "OTHER": 931}, 186, "a6246e37"),
        ("valid", 1000, {"PER": 552, "LOC": 522, "ORG": 247, "OTHER": 220}, 53, "9dcc7f9d"),
        ("test", 3257, {"PER": 1816, "LOC": 1697, "ORG": 839, "OTHER": 720}, 135, "edb2665b"),
    ],
)
def test_the_real_tweets(split: str, tweets: int, entities: dict[str, int], broken: int, sha256: str) -> None:
    config = TwitterConfig(root=real_data("twitter_mner/twitter2015"))
    found = statistics(config, split)
    assert (found.sentences, found.entities, found.broken_tags) == (tweets, entities, broken)
    assert sum(found.entities.values()) == {"train": 6166, "valid": 1541, "test": 5072}[split]
    assert sum(found.entities_lenient.values()) == sum(found.entities.values()) + broken
    assert found.images + found.missing_images == tweets
    assert found.sha256[f"{split}.txt"].startswith(sha256)
    assert len({row.id for row in read(config, split)}) == tweets


def test_the_real_no_break_space_is_a_word() -> None:
    found = read(TwitterConfig(root=real_data("twitter_mner/twitter2015")), "valid")
    assert sum(word == "\xa0" for row in found for word in row.words) == 1


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_real_photos_belong_to_the_real_tweets(split: str) -> None:
    images = real_data("twitter_image_sample/twitter_2015/images")
    config = TwitterConfig(root=real_data("twitter_mner/twitter2015"), images=images)
    found = statistics(config, split)
    assert (found.images, found.missing_images) == (5, found.sentences - 5)
    texts = real_data(f"twitter_image_sample/twitter_2015/texts/{split}/{split}.json")
    sample = [json.loads(line) for line in texts.read_text().splitlines()]
    rows = {row.id: row for row in read(config, split)}
    for fields in sample:
        row = rows[fields["id"]]
        assert row.image is not None
        assert row.image.is_file()
        assert row.words == tuple(fields["tokens"])


def test_real_photos_whose_numbers_begin_anew_in_each_split(tmp_path: Path) -> None:
    images = real_data("twitter_image_sample/twitter_2017/images")
    for split in ("train", "dev", "test"):
        write_corpus(tmp_path, "IMGID:1\nx\tO\n\nIMGID:999\ny\tO\n", name=f"{split}.txt")
    config = TwitterConfig(root=tmp_path, images=images)
    found = {split: read_any(config, split)[0].image for split in ("train", "dev", "test")}
    assert found == {split: images / split / "1.jpg" for split in ("train", "dev", "test")}
    assert statistics(config, "train").missing_images == 1
