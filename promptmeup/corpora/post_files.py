"""What the readers of downstream corpora share: split files, lines of text, photos and crops."""

import codecs
import io
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from promptmeup.corpora.json_files import is_text
from promptmeup.corpora.paths import normal_path, refusal
from promptmeup.errors import CorpusError
from promptmeup.records import WordSpan

SPLITS = {"train": ("train",), "val": ("val", "valid", "dev"), "test": ("test",)}
"""split -> all names that files, folders and people give it"""
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""first object in a file of torch.save from before PyTorch 1.6; protocol and system follow"""


def spellings(split: str) -> tuple[str, ...]:
    """Return all names of `split`.

    Raises:
        CorpusError: it is none of train, val (valid, dev) and test.
    """
    for names in SPLITS.values():
        if split in names:
            return names
    raise CorpusError(f"there is no split '{split}'; allowed are train, val (or valid, dev) and test")


def only_file(candidates: Sequence[Path], *, what: str) -> Path:
    """Return the one of `candidates` that is there.

    Raises:
        CorpusError: none or several of them are.
    """
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise CorpusError(f"{what} is missing: expected {' or '.join(map(str, candidates))}; set data.root")
    if len(found) > 1:
        raise CorpusError(f"{what} is there more than once: keep one of {', '.join(map(str, found))}")
    return found[0]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its end) of each line; only "\\n" and "\\r\\n" end one.

    str.splitlines would also split at characters that occur inside tweets, such as U+2028.

    Raises:
        CorpusError: the file cannot be read or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} line {number} is not UTF-8 text: {error.reason}") from error


def is_tag(tag: object) -> bool:
    """Return whether `tag` is O, B-TYPE or I-TYPE."""
    return tag == "O" or (is_text(tag) and str(tag)[:2] in ("B-", "I-") and bool(str(tag)[2:].strip()))


def word_span(words: tuple[str, ...], place: Any) -> WordSpan | None:
    """Return words [start, end) if `place` is such a pair, which holds at least one word, else None."""
    if not isinstance(place, list | tuple) or len(place) != 2 or not all(type(i) is int for i in place):
        return None
    start, end = place
    return WordSpan(start, end, words[start:end]) if 0 <= start < end <= len(words) else None


def is_words(value: object) -> bool:
    """Return whether `value` is a list of at least one word, none of them empty."""
    return isinstance(value, list) and bool(value) and all(is_text(word) and word for word in value)


class PhotoFolder:
    """A folder of photos, or None of them where there is no folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._real = os.path.realpath(folder) if folder else ""

    def find(self, name: str, *, place: str) -> Path | None:
        """Return the file `name`, or None where it is absent.

        Args:
            place: file and line that name it, for messages.

        Raises:
            CorpusError: the name leads out of the folder.
        """
        if not is_text(name) or not name.strip() or "\0" in name:
            raise CorpusError(f"{place}: the name of a photo must be text and not empty, this is {name!r}")
        if self._folder is None:
            return None
        path = normal_path(name)
        refused = refusal(path, folder=self._folder, real_folder=self._real)
        if refused is None:
            return self._folder / path
        reason, detail = refused
        if reason == "missing_image":
            return None
        raise CorpusError(f"{place}: photo {name}: {detail}")


def photo_folder(configured: Path | None, usual: Sequence[Path], *, root: Path, setting: str) -> Path | None:
    """Return the folder that a setting names, else the first of the `usual` ones that is there, or None.

    Raises:
        CorpusError: the one that the setting names is absent.
    """
    if configured is not None:
        folder = root / configured
        if not folder.is_dir():
            raise CorpusError(f"{setting}: {folder} is no folder; correct it, or leave {setting} out")
        return folder
    return next((folder for folder in usual if folder.is_dir()), None)


def of_split(folder: Path | None, split: str) -> Path | None:
    """Return the folder for `split` under `folder` where there is one, else `folder` itself.

    Twitter-2017's photos are also given away as 1.jpg, 2.jpg … anew in a folder for each split.
    """
    if folder is None:
        return None
    names = next((names for names in SPLITS.values() if split in names), (split,))
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


class Crops:
    """The pictures of single objects that HVPNeT's downloads bring: a folder, and a file that says whose."""

    def __init__(self, folder: Path | None, lists: Sequence[Path]) -> None:
        """Read the first of `lists` that is there; without folder or list nothing has crops.

        Raises:
            CorpusError: the list cannot be read.
        """
        self._photos = PhotoFolder(folder)
        path = next((path for path in lists if path.is_file()), None) if folder else None
        self._names = _read_crop_list(path) if path else {}
        self._place = str(path)

    def of(self, key: str | int) -> tuple[tuple[Path, ...], int]:
        """Return the crops of `key` that are there, in the list's order, and how many are not."""
        found = [self._photos.find(name, place=self._place) for name in self._names.get(key, ())]
        there = tuple(path for path in found if path is not None)
        return there, len(found) - len(there)


class _PlainUnpickler(pickle.Unpickler):
    """Loads dicts, lists, text and numbers only: a pickle from elsewhere could otherwise run anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _read_crop_list(path: Path) -> dict[str | int, tuple[str, ...]]:
    """Return {photo or line: names of crops} as torch.save stored it, without torch and without its risks."""
    try:
        with path.open("rb") as file:
            lists = _plain_object(file)
    # a damaged pickle raises nearly anything
    except Exception as error:
        raise CorpusError(
            f"{path} cannot be read as a dict of lists of names stored by torch.save: {error}; "
            "copy it again, or remove it to train without crops"
        ) from error
    if not isinstance(lists, dict) or not all(
        isinstance(key, str | int)
        and isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        for key, names in lists.items()
    ):
        raise CorpusError(f"{path}: expected a dict of lists of names, {{'17.jpg': ['17_0.jpg', …]}}")
    return {key: tuple(names) for key, names in lists.items()}


def _plain_object(file: IO[bytes]) -> Any:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _PlainUnpickler(io.BytesIO(archive.read(name))).load()
    file.seek(0)
    if _PlainUnpickler(file).load() != _TORCH_MAGIC:
        raise pickle.UnpicklingError("it was not written by torch.save")
    for _ in ("protocol", "system"):
        _PlainUnpickler(file).load()
    return _PlainUnpickler(file).load()
