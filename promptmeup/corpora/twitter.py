"""Twitter-2015 and Twitter-2017, named entities in tweets with photos, as UMT and HVPNeT lay them out.

    ROOT/train.txt, valid.txt (or dev.txt, val.txt), test.txt
    ROOT_images/ID.jpg                        beside ROOT; or ROOT/images/, each with or without a folder a split
    ROOT_aux_images/SPLIT/crops/…             optional, with ROOT/NAME_SPLIT_dict.pth saying whose they are

A label file holds a line IMGID:ID, then word TAB tag for each word, then an empty line. Words may be a
no-break space (Twitter-2015 valid.txt, line 9658), so lines are split at the TAB and nowhere else. An I-
tag that follows no tag of its type is kept as it is: 186, 53 and 135 in Twitter-2015, none in 2017.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from promptmeup.config import Config
from promptmeup.corpora.post_files import (
    Crops,
    PhotoFolder,
    is_tag,
    of_split,
    only_file,
    photo_folder,
    spellings,
    text_lines,
)
from promptmeup.errors import CorpusError
from promptmeup.records import TaggedSentence

_PREFIX = "IMGID:"


class TwitterConfig(Config):
    """Where Twitter-2015 or Twitter-2017 lies."""

    kind: Literal["twitter"] = "twitter"
    root: Path
    """folder of the label files"""
    images: Path | None = None
    """folder of the photos, relative to `root` unless absolute; None: NAME_images beside it, or images in it"""
    crops: Path | None = None
    """folder of SPLIT/crops, likewise; None: NAME_aux_images beside `root`"""


@dataclass
class _Tweet:
    """A tweet of which more lines may follow."""

    id: str
    line: int
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def label_files(config: TwitterConfig, split: str) -> tuple[Path, ...]:
    """Return the one file with the labels of `split`.

    Raises:
        CorpusError: it is absent, or there under two names.
    """
    names = [config.root / f"{name}.txt" for name in spellings(split)]
    return (only_file(names, what=f"the label file of split '{split}'"),)


def read(config: TwitterConfig, split: str) -> tuple[TaggedSentence, ...]:
    """Return the tweets of `split` in the file's order; a photo whose file is absent is None.

    Raises:
        CorpusError: a file is absent or a line malformed, which it names.
    """
    (path,) = label_files(config, split)
    root = Path(os.path.abspath(config.root))
    beside = root.parent / f"{root.name}_images"
    images = photo_folder(config.images, [beside, root / "images"], root=config.root, setting="data.images")
    photos = PhotoFolder(of_split(images, split))
    crops = _crops(config, split, root)
    sentences = []
    for tweet in _tweets(path):
        name = f"{tweet.id}.jpg"
        there, missing = crops.of(name)
        sentences.append(
            TaggedSentence(
                id=tweet.id,
                words=tuple(tweet.words),
                tags=tuple(tweet.tags),
                image_name=name,
                image=photos.find(name, place=f"{path} line {tweet.line}"),
                crops=there,
                missing_crops=missing,
            )
        )
    return tuple(sentences)


def _crops(config: TwitterConfig, split: str, root: Path) -> Crops:
    usual = [root.parent / f"{root.name}_aux_images"]
    folder = of_split(photo_folder(config.crops, usual, root=config.root, setting="data.crops"), split)
    lists = [root / f"{root.name}_{name}_dict.pth" for name in spellings(split)]
    return Crops(folder / "crops" if folder else None, lists)


def _tweets(path: Path) -> list[_Tweet]:
    tweets: list[_Tweet] = []
    is_open = False  # an empty line ends a tweet
    for number, line in text_lines(path):
        place = f"{path} line {number}"
        if not line:
            _require_words(path, tweets)
            is_open = False
        elif line.startswith(_PREFIX) and "\t" not in line:
            if is_open:
                raise CorpusError(f"{place}: expected an empty line before the next tweet, found {line!r}")
            tweets.append(_Tweet(line.removeprefix(_PREFIX).strip(), number))
            is_open = True
            if not tweets[-1].id:
                raise CorpusError(f"{place}: expected the photo's number behind {_PREFIX}")
        elif not is_open:
            raise CorpusError(f"{place}: expected a line {_PREFIX}NUMBER before the words, found {line!r}")
        else:
            word, tab, tag = line.partition("\t")
            if not word or not tab or not is_tag(tag):
                raise CorpusError(
                    f"{place}: expected word TAB tag, the tag O, B-TYPE or I-TYPE, found {line!r}"
                )
            tweets[-1].words.append(word)
            tweets[-1].tags.append(tag)
    _require_words(path, tweets)
    return tweets


def _require_words(path: Path, tweets: list[_Tweet]) -> None:
    if tweets and not tweets[-1].words:
        raise CorpusError(
            f"{path} line {tweets[-1].line}: tweet {tweets[-1].id} has no words; expected word TAB tag"
        )
