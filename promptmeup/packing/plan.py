"""Which samples go into which shard: decided before any photo is opened, so that shards can be made in any
order, by any number of processes and machines, and again after a kill, with the same bytes.

    .packing/plan.jsonl   one sample a line, in order; every `samples_per_shard` lines are a shard
    .packing/plan.json    where each shard's lines begin, what the reader rejected, and the settings; last

Every process of every machine reads the corpus and makes the plan by itself, and compares it with the one that
is there: that costs a minute for a million records and needs no locks, which cluster file systems lack.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptmeup.config import fingerprint
from promptmeup.errors import CorpusError, ShardError
from promptmeup.records import Box, Caption, Reject, Sample
from promptmeup.shard_format import shard_name, temporary_path, write_json

Reader = Callable[[Callable[[Reject], None]], Iterable[Sample]]
"""Yields a split's samples and calls its argument with whatever it cannot read."""


@dataclass(frozen=True)
class Plan:
    """The plan of one split; `folder` is its work folder."""

    folder: Path
    starts: tuple[int, ...]
    """bytes in plan.jsonl where each shard's lines begin"""
    samples: tuple[int, ...]
    """in each shard, before any is rejected"""
    pairs: int
    """of all samples"""
    rejects: tuple[Reject, ...]
    """of the corpus's reader"""
    digest: str
    """of all samples, their boxes apart, which may be replaced later"""
    parts: Path
    """folder of the parts of this plan and these settings"""

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards; one of which every photo is rejected is never written."""
        return tuple(shard_name(number) for number in range(len(self.starts)))

    def read(self, shard: str) -> list[Sample]:
        """Return the samples of one shard."""
        number = self.shards.index(shard)
        with (self.folder / "plan.jsonl").open("rb") as file:
            file.seek(self.starts[number])
            return [_sample(json.loads(file.readline())) for _ in range(self.samples[number])]


def make_plan(read: Reader, folder: Path, *, samples_per_shard: int, settings: dict[str, Any]) -> Plan:
    """Read the corpus and write its plan into `folder`, or find that the one there is the same.

    Args:
        settings: what else decides the content of the shards.

    Raises:
        CorpusError: the corpus cannot be read, or has no sample at all.
        ShardError: another plan is there: the corpus or the settings changed since the packing began.
    """
    rejects: list[Reject] = []
    starts, samples, pairs = [], [], 0
    digest, whole = hashlib.sha256(), hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(folder / "plan.jsonl")
    try:
        with temporary.open("wb") as file:
            for number, sample in enumerate(read(rejects.append)):
                if number % samples_per_shard == 0:
                    starts.append(file.tell())
                    samples.append(0)
                samples[-1] += 1
                pairs += len(sample.captions)
                described, boxes = _lines(sample)
                digest.update(described)
                line = b"[" + described + b"," + boxes + b"]\n"
                whole.update(line)
                file.write(line)
        if not starts:
            reasons = sorted({reject.reason for reject in rejects if not reject.kept})
            raise CorpusError(f"nothing to pack: no pair is usable ({', '.join(reasons) or 'there is none'})")
        plan: dict[str, Any] = {
            "settings": settings,
            "starts": starts,
            "samples": samples,
            "rejects": [asdict(reject) for reject in rejects],
            "digest": digest.hexdigest()[:16],
            "sha256": whole.hexdigest(),
        }
        _compare(folder, plan)
        temporary.replace(folder / "plan.jsonl")
    finally:
        temporary.unlink(missing_ok=True)
    write_json(folder / "plan.json", plan)
    parts = parts_folder(folder, plan)
    return Plan(folder, tuple(starts), tuple(samples), pairs, tuple(rejects), plan["digest"], parts)


def parts_folder(work: Path, described: dict[str, Any]) -> Path:
    """Return the folder for the parts of what is `described`, and make it.

    Hashes of settings do not count for its name: weights that ultralytics downloads at the first use have none before.
    Others under the same name are refused by `differences`.
    """
    folder = work / f"parts-{fingerprint(_without_hashes(described))}"
    folder.mkdir(exist_ok=True)
    return folder


def _without_hashes(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_hashes(v) for k, v in value.items() if not str(k).endswith("_sha256")}
    return [_without_hashes(v) for v in value] if isinstance(value, list | tuple) else value


def _compare(folder: Path, new: dict[str, Any]) -> None:
    try:
        old = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    changed = differences(old["settings"], new["settings"])
    if not changed and (old["sha256"], old["rejects"]) != (new["sha256"], new["rejects"]):
        changed = "the corpus changed"
    if changed:
        raise ShardError(
            f"{folder.parent} holds an unfinished packing with other settings ({changed}); finish it with the "
            f"old ones, set out to another folder, or delete {folder.parent} to pack from the start"
        )


def differences(there: Any, wanted: Any, name: str = "") -> str:
    """Return what differs between two nested settings, as "name was X, is Y, ..."; a hash may be unknown (None)."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        parts = (
            differences(there.get(key), wanted.get(key), f"{name}.{key}" if name else key)
            for key in sorted(there.keys() | wanted.keys())
        )
        return ", ".join(part for part in parts if part)
    unknown = name.endswith("_sha256") and None in (there, wanted)
    return "" if there == wanted or unknown else f"{name} was {there}, is {wanted}"


def _lines(sample: Sample) -> tuple[bytes, bytes]:
    """Return a sample's JSON without its boxes, and that of the boxes."""
    fields = (
        *(sample.key, sample.image_path, sample.member),
        [(caption.id, caption.text, caption.image_key) for caption in sample.captions],
        [asdict(note) for note in sample.notes],
    )
    boxes = sample.boxes and [asdict(box) for box in sample.boxes]
    described, known = (
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() for value in (fields, boxes)
    )
    return described, known


def _sample(line: Any) -> Sample:
    (key, path, member, captions, notes), boxes = line
    return Sample(
        key,
        path,
        tuple(Caption(*caption) for caption in captions),
        None if boxes is None else tuple(Box(**box) for box in boxes),
        None if member is None else tuple(member),
        tuple(Reject(**note) for note in notes),
    )
