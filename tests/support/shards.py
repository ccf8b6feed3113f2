"""Packed splits taken apart and put together again, with something wrong in them."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptmeup import shard_format as sf

Members = list[tuple[str, bytes]]


def read_members(path: Path) -> Members:
    """Return name and content of every member of a tar."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_members(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def forge(folder: Path, change: Callable[[Members], Members], *, shard: int = 0) -> str:
    """Rewrite a shard with `change` and make the manifest agree, as a packer with a bug would; return its name."""
    manifest = sf.read_manifest(folder)
    entry = manifest.shards[shard]
    path = folder / entry.name
    write_members(path, change(read_members(path)))
    new = replace(entry, bytes=path.stat().st_size, sha256=sf.file_sha256(path))
    shards = (*manifest.shards[:shard], new, *manifest.shards[shard + 1 :])
    sf.write_manifest(folder, replace(manifest, shards=shards, fingerprint=sf.corpus_fingerprint(shards)))
    return entry.name


def change_record(
    change: Callable[[dict[str, Any]], object], *, sample: int = 1
) -> Callable[[Members], Members]:
    """Return a change of members that applies `change` to the JSON of one sample."""

    def changed(members: Members) -> Members:
        name, content = members[2 * sample + 1]
        record = json.loads(content)
        change(record)
        text = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
        return [*members[: 2 * sample + 1], (name, text), *members[2 * sample + 2 :]]

    return changed
