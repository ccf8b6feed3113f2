"""Packed splits, their soft labels, and the cache of remote ones, as this rank sees them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from promptmeup.data.reader import PackedSplit
from promptmeup.data.remote import RemoteFolder, StagingConfig, is_remote
from promptmeup.data.settings import DataConfig
from promptmeup.distributed.world import World
from promptmeup.doctor.disk import existing_folder, free_bytes
from promptmeup.doctor.finding import GB, Finding, failed, ok, together, warning, where
from promptmeup.errors import ShardError
from promptmeup.progress import spoken
from promptmeup.shard_format import Manifest, file_sha256, parse_manifest
from promptmeup.training.inputs import open_sources
from promptmeup.training.settings import PretrainConfig

SERVER_SECONDS = 10.0
"""that a server of shards may be silent before it counts as unreachable; training itself is more patient"""


def is_staged(data: DataConfig) -> bool:
    """Whether any split comes from a server."""
    return any(is_remote(place) for place in locations(data).values())


def locations(data: DataConfig) -> dict[str, str]:
    """Return every split of a run by its configuration key."""
    found = {"data.train": data.train}
    found |= {f"data.blend.{number}": part.path for number, part in enumerate(data.blend)}
    return found | ({"data.val": data.val} if data.val else {})


def split(location: str, cache: StagingConfig, *, rank: int, size: int, full: bool) -> Finding:
    """Open a split, and compare the SHA-256 of this rank's share of the shards with the manifest.

    Args:
        full: all shards are shared out over the ranks; otherwise each rank takes one.
    """
    if is_remote(location):
        return _remote_split(location, cache)
    packed = PackedSplit(Path(location))
    try:
        shards = packed.manifest.shards
        number = len(shards)
        mine = range(rank, number, size) if full else [rank * number // size % number] if number else []
        wrong = [
            shards[i].name for i in mine if file_sha256(packed.folder / shards[i].name) != shards[i].sha256
        ]
        facts = _facts(packed.manifest) | {"compared": [shards[i].name for i in mine]}
    finally:
        packed.close()
    if wrong:
        return failed(
            f"{packed.folder}: {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''} "
            "not as the manifest says (SHA-256): copy it again, or pack the corpus again; "
            "shards/verify.py says what is "
            "damaged",
            **facts,
            wrong=wrong,
        )
    return ok(_described(location, packed.manifest), **facts)


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "fingerprint": manifest.fingerprint,
        "shards": len(manifest.shards),
        "photos": manifest.samples,
        "pairs": manifest.pairs,
        "bytes": sum(entry.bytes for entry in manifest.shards),
    }


def _described(location: str, manifest: Manifest) -> str:
    size = sum(entry.bytes for entry in manifest.shards)
    return (
        f"{location}: {manifest.pairs:,} pairs of {manifest.samples:,} photos in {len(manifest.shards)} shards, "
        f"{spoken(size)}"
    )


def _impatient(cache: StagingConfig) -> StagingConfig:
    return cache.model_copy(update={"attempts": 1, "timeout": min(cache.timeout, SERVER_SECONDS)})


def _remote_split(location: str, cache: StagingConfig) -> Finding:
    remote = RemoteFolder(location, _impatient(cache))
    try:
        content = remote.read("manifest.json")
    except FileNotFoundError as error:
        raise ShardError(
            f"{remote.shown} is not a packed split (no manifest.json there); give the URL of one split, "
            "or copy the folder "
            "again, manifest.json last"
        ) from error
    manifest = parse_manifest(content, where=f"{remote.shown}/manifest.json")
    text = f"{_described(remote.shown, manifest)}; on a server, compared when it is fetched"
    return ok(text, **_facts(manifest), compared=[])


def same_split(by_rank: Mapping[int, Finding], hosts: Mapping[int, str]) -> Finding:
    """Join what the ranks found: one corpus for all, and how many of its shards were compared."""
    found = together(by_rank, hosts)
    if found.status == "failed":
        return found
    prints: dict[str, list[int]] = {}
    for rank, one in by_rank.items():
        prints.setdefault(str(one.facts["fingerprint"]), []).append(rank)
    first = next(iter(by_rank.values()))
    if len(prints) > 1:
        each = ", ".join(f"{fingerprint} on {where(ranks, hosts)}" for fingerprint, ranks in prints.items())
        text = (
            f"not the same corpus on every node: fingerprint {each}; copy one to all nodes, or use a "
            "shared file system"
        )
        return replace(found, status="failed", text=text)
    compared = sorted({str(name) for one in by_rank.values() for name in one.facts["compared"]})
    text = f"{first.text}; SHA-256 of {len(compared)} compared" if compared else first.text
    return replace(found, text=text, facts=first.facts | {"compared": compared})


def labels(config: PretrainConfig) -> Finding:
    """Open the soft labels that the losses of `config` need, as training will."""
    if not config.needs_labels:
        return ok("none needed: loss.weights has no object_entity and no image_relation", names=[])
    if is_staged(config.data):
        return _remote_labels(config)
    sources, banks = open_sources(config, World(0, 1, 0, torch.device("cpu")))
    try:
        assert sources.labels is not None and banks is not None
        names = [reader.folder.name for reader in sources.labels]
        text = (
            f"{', '.join(names)}: {len(banks.entities_KD)} entity prompts, {len(banks.relations_KD)} "
            "relation prompts"
        )
        return ok(text, names=names)
    finally:
        for opened in sources.splits:
            opened.close()


def _remote_labels(config: PretrainConfig) -> Finding:
    if not is_remote(config.data.train):
        return warning(
            "not looked at, since some of the corpora are on a server; the run checks them when it starts"
        )
    remote = RemoteFolder(config.data.train, _impatient(config.data.cache))
    names = [config.data.labels] if config.data.labels else remote.names("labels")
    finished = []
    for name in names:
        try:
            remote.read(f"labels/{name}/manifest.json")
            finished.append(name)
        except FileNotFoundError:
            continue
    if not finished:
        return failed(
            f"{remote.shown} has no finished soft labels{f' named {names[0]}' if names else ''}: run "
            "launch/label.py and "
            "copy its folder to labels/ there (on a plain HTTP server, name it with data.labels=NAME)"
        )
    return ok(f"{', '.join(finished)} on the server", names=finished)


def cache(data: DataConfig) -> Finding:
    """Compare the node's disk with the remote shards that will come to it."""
    remote = [place for place in locations(data).values() if is_remote(place)]
    folder = data.cache.folder.expanduser()
    needed, present = 0, 0
    for place in remote:
        manifest = parse_manifest(
            RemoteFolder(place, _impatient(data.cache)).read("manifest.json"), where=place
        )
        needed += sum(entry.bytes for entry in manifest.shards)
        here = folder / manifest.fingerprint
        present += sum(file.stat().st_size for file in here.glob("shard-*.tar")) if here.exists() else 0
    if data.cache.limit_gb is not None:
        needed = min(needed, int(data.cache.limit_gb * GB))
    free = free_bytes(folder)
    facts = {"free_gb": round(free / GB, 2), "need_gb": round(max(0, needed - present) / GB, 2)}
    if not os.access(existing_folder(folder), os.W_OK):
        return failed(
            f"cannot write to {folder}: set data.cache.folder to a folder on a disk of this node", **facts
        )
    text = f"{folder}: {spoken(free)} free, {spoken(max(0, needed - present))} of shards will come"
    if free < needed - present:
        limit = max(1, int(0.9 * (free + present) / GB))
        return warning(
            f"{text}: set data.cache.limit_gb={limit}, or data.cache.folder to a larger disk", **facts
        )
    return ok(text, **facts)
