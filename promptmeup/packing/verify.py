"""Can this packed corpus be trusted? Everything that shards/README.md promises, checked on what is on disk."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptmeup.errors import ShardError
from promptmeup.packing.check_shard import Contents, Finding, check_shard
from promptmeup.packing.processes import run_processes
from promptmeup.packing.writer import whole_index
from promptmeup.shard_format import (
    FileEntry,
    LabelManifest,
    Manifest,
    corpus_fingerprint,
    file_entries,
    finished_labels,
    key_of,
    label_dtype,
    label_file,
    read_label_manifest,
    read_manifest,
)

SHOWN = 20
"""findings of one kind that are listed; the others are counted"""


@dataclass
class Report:
    """What was looked at and what was found."""

    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """worth knowing, not wrong"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "sound": not self.findings,
            "counts": dict(Counter(finding.check for finding in self.findings)),
        }

    def __str__(self) -> str:
        lines = [
            f"{folder}: " + ", ".join(f"{number} {name}" for name, number in numbers.items())
            for folder, numbers in self.splits.items()
        ]
        lines += [f"note: {note}" for note in self.notes]
        counts = Counter(finding.check for finding in self.findings)
        shown: Counter[str] = Counter()
        for finding in self.findings:
            shown[finding.check] += 1
            if shown[finding.check] <= SHOWN:
                lines.append(f"WRONG {finding}")
        lines += [f"WRONG ... and {n - SHOWN} more of {check}" for check, n in counts.items() if n > SHOWN]
        lines.append(f"{len(self.findings)} things are wrong" if self.findings else "everything is sound")
        return "\n".join(lines)


def split_folders(folder: Path) -> list[Path]:
    """Return the packed splits in `folder`, or `folder` itself where it is one.

    Raises:
        ShardError: there is none.
    """
    if (folder / "manifest.json").exists() or any(folder.glob("shard-*.tar")):
        return [folder]
    found = sorted(
        {path.parent for name in ("manifest.json", "shard-*.tar") for path in folder.glob(f"*/{name}")}
    )
    if not found:
        raise ShardError(f"{folder} holds no packed split; name the folder that shards/pack.py wrote (out=)")
    return found


def verify(
    folders: Sequence[Path],
    *,
    full: bool = False,
    processes: int = 1,
    count: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check every split of `folders`, and that none leaks into another.

    Args:
        full: decode every photo, not one in twenty.
        count: called with the number of shards done.
    """
    report = Report()
    found: dict[Path, dict[str, NDArray[np.int64]]] = {}
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except ShardError as error:
            report.findings.append(Finding("manifest", str(error), str(folder / "manifest.json")))
            continue
        tasks = [(folder, entry) for entry in manifest.shards]
        check = partial(check_shard, full=full)
        contents: dict[str, Contents] = dict(run_processes(check, tasks, processes=processes, count=count))
        ordered = [contents[entry.name] for entry in manifest.shards]
        report.findings += [finding for shard in ordered for finding in shard.findings]
        report.findings += _check_split(folder, manifest, ordered)
        for labels in finished_labels(folder):
            report.findings += _check_labels(labels, manifest, report.notes)
        report.splits[str(folder)] = {
            "shards": len(manifest.shards),
            "samples": manifest.samples,
            "pairs": manifest.pairs,
            "photos decoded": sum(shard.decoded for shard in ordered),
        }
        found[folder] = _identities(ordered)
        twice = len(found[folder]["bytes"]) - len(np.unique(found[folder]["bytes"]))
        if twice:
            report.notes.append(f"{folder}: {twice} photos have the same bytes as another one of this split")
    report.findings += _leaks(found)
    return report


def _check_split(folder: Path, manifest: Manifest, shards: Sequence[Contents]) -> list[Finding]:
    """Check what the whole split says against what is in its shards."""
    findings = []
    here = str(folder / "manifest.json")
    if manifest.fingerprint != corpus_fingerprint(manifest.shards):
        findings.append(Finding("manifest", "the fingerprint is not that of the shards listed", here))
    for name in ("samples", "pairs", "matched_pairs"):
        total = sum(getattr(entry, name) for entry in manifest.shards)
        if getattr(manifest, name) != total:
            detail = f"{name} = {getattr(manifest, name)}, the shards listed have {total}"
            findings.append(Finding("manifest", detail, here))
    findings += _check_files(folder, manifest.tables, "table")
    listed = {entry.name for entry in manifest.shards}
    findings += [
        Finding("stray_file", "is not in the manifest; readers by pattern would read it", str(path))
        for path in sorted(folder.glob("*.tar"))
        if path.name not in listed
    ]
    index, pairs = whole_index([(shard.index, shard.pairs) for shard in shards])
    findings += _check_array(folder / "index.npy", index, manifest)
    findings += _check_array(folder / "pairs.npy", pairs, manifest)
    ids, counts = np.unique(index["image_id"], return_counts=True)
    findings += [
        Finding("duplicate_key", f"{count} samples have it", str(folder), key_of(number))
        for number, count in zip(ids[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
    ]
    return findings


def _check_files(folder: Path, entries: Sequence[FileEntry], check: str) -> list[Finding]:
    there = file_entries(folder, [entry.name for entry in entries])
    return [
        Finding(
            check,
            "is not as the manifest says: missing, changed, or not copied whole",
            str(folder / entry.name),
        )
        for entry in entries
        if entry not in there
    ]


def _check_array(path: Path, expected: NDArray[Any], manifest: Manifest) -> list[Finding]:
    check = path.stem
    try:
        there = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return [Finding(check, f"cannot be read: {error}", str(path))]
    if there.dtype != expected.dtype or there.shape != expected.shape:
        detail = f"{there.shape} of {there.dtype}; the shards have {expected.shape} of {expected.dtype}"
        return [Finding(check, detail, str(path))]
    wrong = np.flatnonzero(there != expected)
    if not len(wrong):
        return []
    row = int(wrong[0])
    detail = (
        f"{len(wrong)} rows are not as in the shards; row {row} is {there[row]}, should be {expected[row]}"
    )
    shard = manifest.shards[int(expected[row]["shard"])].name if check == "index" else ""
    where = f"{path} ({shard})" if shard else str(path)
    return [Finding(check, detail, where, key_of(int(expected[row]["image_id"])))]


def _check_labels(folder: Path, manifest: Manifest, notes: list[str]) -> list[Finding]:
    try:
        labels = read_label_manifest(folder)
    except ShardError as error:
        return [Finding("labels", str(error), str(folder / "manifest.json"))]
    if labels.corpus != manifest.fingerprint:
        notes.append(f"{folder} labels what this split was before; nothing reads it, it can be deleted")
        return []
    findings = _check_files(folder, labels.files, "labels")
    for entry in manifest.shards:
        for kind, rows in (("objects", entry.boxes), ("images", entry.samples)):
            path = label_file(folder, entry.name, kind)
            if problem := _label_problem(path, labels, kind, rows):
                findings.append(Finding("labels", problem, str(path)))
    return findings


def _label_problem(path: Path, labels: LabelManifest, kind: str, rows: int) -> str:
    prompts = len(labels.entities if kind == "objects" else labels.relations)
    try:
        there = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"cannot be read: {error}"
    dtype = label_dtype(min(labels.num_kept, prompts))
    if there.dtype != dtype or there.shape != (rows,):
        return f"{there.shape} of {there.dtype}; the split needs ({rows},) of {dtype}"
    probs = there["probs"].astype(np.float64)
    bad = (there["ids"] >= prompts).any(1) | ~(probs >= 0).all(1) | (probs.sum(1) > 1.01)
    bad |= (np.diff(probs, axis=1) > 0).any(1)
    return (
        f"{bad.sum()} rows are no probabilities in descending order, the first is row {bad.argmax()}"
        if bad.any()
        else ""
    )


def _identities(shards: Sequence[Contents]) -> dict[str, NDArray[np.int64]]:
    def together(parts: list[NDArray[Any]]) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    return {
        "image": together([shard.index["image_id"] for shard in shards]),
        "bytes": together([shard.bytes_ids for shard in shards]),
        "caption": together([shard.caption_ids for shard in shards]),
        "caption_image": together([shard.pairs["image_id"] for shard in shards]),
    }


def _leaks(found: dict[Path, dict[str, NDArray[np.int64]]]) -> list[Finding]:
    """Return what two splits share: a model would be judged on what it was trained on."""
    findings = []
    what = {
        "image": "the same photo (by its path) is in {other} as well",
        "bytes": "a photo with the same bytes is in {other} as well",
        "caption": "a caption shown with it is in {other} as well",
    }
    for (folder, own), (other, theirs) in combinations(found.items(), 2):
        for kind, text in what.items():
            shared = np.unique(own[kind][np.isin(own[kind], theirs[kind])])
            keys = own["caption_image" if kind == "caption" else "image"]
            first = {number: keys[np.flatnonzero(own[kind] == number)[0]] for number in shared[:SHOWN]}
            findings += [
                Finding(f"leak_{kind}", text.format(other=other), str(folder), key_of(int(first[number])))
                if number in first
                else Finding(f"leak_{kind}", text.format(other=other), str(folder))
                for number in shared
            ]
    return findings
