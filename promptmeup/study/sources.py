"""What a stage reads from outside the study's store, and the content of it: with another one it is another stage."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from promptmeup.shard_format import file_sha256

_NO_SOURCES = ("cache", "tracking")
"""settings whose folders are written while a stage runs; an experiment may be called as a folder is"""
_READ = (".bin", ".csv", ".json", ".jsonl", ".npy", ".pt", ".safetensors", ".tsv", ".txt", ".yaml", ".yml")
"""labels and weights: after a correction they are often as long as before"""
_END = 2**19
"""bytes at the beginning and at the end of a file of `_READ` that count: of up to 1 MB all"""
_MOST = 10_000
"""files of a folder that are read; of others, which may be a file a photo on a network file system, the size counts"""


def find_sources(value: Any, *, ours: Sequence[Path]) -> list[Path]:
    """Return the files and folders that a configuration names, of those that are there.

    Stages' own folders are marks in it. A folder that holds or lies in one of `ours` is none: the store, the study's
    folder, the work tree above all of which somebody may name; they change as the study goes on.
    """
    if isinstance(value, Mapping):
        value = [one for key, one in value.items() if key not in _NO_SOURCES]
    if isinstance(value, list):
        return sorted({path for one in value for path in find_sources(one, ours=ours)})
    if not isinstance(value, str):
        return []
    path = Path(value)
    try:
        if path.is_file() or (path.is_dir() and not _is_ours(path.resolve(), ours)):
            return [path]
    except (OSError, ValueError):
        pass  # longer than a name may be, or with characters that none has
    return []


def _is_ours(folder: Path, ours: Sequence[Path]) -> bool:
    """Return whether `folder` holds one of `ours`, or lies in the first of them, the store."""
    return any(one.is_relative_to(folder) for one in ours) or folder.is_relative_to(ours[0])


def content_of(path: Path) -> str:
    """Return what changes with the content of a file or a folder.

    A file is read. Of a folder the path and the size of every file count, and of labels and weights (`_READ`) both
    ends, too: a million photos cost a look at each and are not read, so that a photo of other content and the same size
    goes unnoticed, as does a change in the midst of a long file that leaves its length. Names that begin with a dot
    do not count; links are followed, to each folder once.
    """
    if not path.is_dir():
        return file_sha256(path) if path.is_file() else "nothing"
    total, read = hashlib.sha256(), 0
    for file in _files_below(path):
        try:
            line = f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode(errors="surrogateescape")
            if file.suffix.lower() in _READ and read < _MOST:
                read += 1
                line += _ends(file)
        except OSError:  # a link to nothing, or of another user
            line = f"{file.relative_to(path)}\0".encode(errors="surrogateescape")
        total.update(line + b"\n")
    return total.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:  # a link to a folder above it would have no end
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _ends(file: Path) -> bytes:
    with file.open("rb") as opened:
        begin = opened.read(_END)
        opened.seek(max(_END, file.stat().st_size - _END))
        return hashlib.sha256(begin + opened.read(_END)).digest()
