"""A raw corpus -> packed splits, in stages; what is done is left alone, and each manifest comes last.

A split is made shard by shard, by processes here and on other machines. Its work folder `.packing` holds the
plan and what is known of each finished shard; it goes when the manifest is there. Killed at any point, the same
command goes on where it stopped, and the bytes are those of an undisturbed run.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from promptmeup import __version__
from promptmeup.corpora import raw
from promptmeup.errors import CorpusError, ShardError
from promptmeup.packing.finish import Gathered, finish_split, gather_parts, rejects_after_update
from promptmeup.packing.parts import missing_shards
from promptmeup.packing.plan import Plan, differences, make_plan, parts_folder
from promptmeup.packing.processes import available_cores, run_processes
from promptmeup.packing.rejects import BOX_REASONS, Books, write_rejects
from promptmeup.packing.settings import STAGES, PackConfig
from promptmeup.packing.shard_maker import ShardMaker
from promptmeup.packing.stages import PhotoSettings
from promptmeup.progress import Progress
from promptmeup.records import Reject, Sample
from promptmeup.shard_format import Manifest, manifest_of, read_manifest, write_json

WORK = ".packing"

Settings = dict[str, Any]
"""by stage: what decides the content of the shards"""


def pack(config: PackConfig) -> None:
    """Do for every split of `config` what is still to do, and say what came of it.

    Raises:
        CorpusError: the corpus cannot be read, or too many of its pairs are lost.
        ShardError: a split was packed with other settings, or the output cannot be written.
        WeightsError: the detector or the spaCy model is not there.
    """
    _check_splits(config)
    settings = config.content_settings()
    for split in config.splits:
        try:
            _pack_split(split, config, settings)
        except OSError as error:  # trouble with a single image is caught where it is read
            if isinstance(error, FileNotFoundError) and (config.out / split / "manifest.json").exists():
                continue  # another task finished the split and removed its work folder a moment ago
            raise ShardError(
                f"cannot read or write {error.filename or config.out / split}: {error.strerror}; "
                "make room or mend the permissions and run the same command again: it goes on where it stopped"
            ) from error


def _pack_split(split: str, config: PackConfig, settings: Settings) -> None:
    folder = config.out / split
    if (folder / WORK / "update.json").exists():
        _update(folder, config, settings, *_begun_update(folder, config, settings))
    elif (folder / "manifest.json").exists():
        manifest = read_manifest(folder)
        todo = _stages_to_do(folder, manifest, config, settings)
        if todo:
            _update(folder, config, settings, manifest, todo)
        else:
            _remove_work(folder / WORK)
            print(f"{folder}: packed already with these settings, nothing to do", flush=True)
    elif config.makes("photos"):
        _pack_photos(split, folder, config, settings)
    else:
        raise ShardError(
            f"{folder} is not a packed split: stage={config.stage} needs its photos; pack them with stage=photos"
        )


def _stages_to_do(
    folder: Path, manifest: Manifest, config: PackConfig, settings: Settings
) -> tuple[str, ...]:
    """Return which stages a finished split lacks.

    Raises:
        ShardError: it was made with other settings, and nobody asked to replace what they decide.
    """
    todo = []
    for stage in STAGES:
        if not config.makes(stage):
            continue
        there = manifest.packed_with.get(stage)
        if there is None or (config.redo and not _is_of_this_job(there)):
            todo.append(stage)
        elif changed := differences(there["settings"], settings[stage]):
            if config.stage != stage or stage == "photos":
                replace = f"replace them with stage={stage}, " if stage != "photos" else ""
                raise ShardError(
                    f"{folder}: its {stage} were packed with other settings ({changed}); {replace}"
                    f"set out to another folder, or delete {folder} to pack it again"
                )
            todo.append(stage)
    return tuple(todo)


def _pack_photos(split: str, folder: Path, config: PackConfig, settings: Settings) -> None:
    start, work = time.monotonic(), folder / WORK
    if not (work / "plan.json").exists() and any(folder.glob("shard-*.tar")):
        raise ShardError(
            f"{folder} holds shards that are of no finished split and of no packing that can go on; "
            "move them away, or set out to another folder"
        )
    settings = {stage: settings[stage] for stage in STAGES if config.makes(stage)}
    plan = _plan(split, folder, config, settings, samples_per_shard=config.samples_per_shard)
    maker = ShardMaker(
        folder=folder,
        parts=plan.parts,
        plan=plan,
        photos=PhotoSettings(raw.image_root(config.corpus), config.shorter_side, config.jpeg_quality),
        boxes=config.makes("boxes"),
        detector=config.detector,
        entities=config.entities if config.makes("entities") else None,
    )
    try:
        at_best = Books(max_rate=config.max_reject_rate)
        at_best.add(plan.rejects, packed=plan.pairs)
        at_best.check()  # before hours of work that cannot end well
        if not _make_shards(maker, plan.shards, dict(zip(plan.shards, plan.samples, strict=True)), config):
            return
        gathered = gather_parts(plan.parts, plan.shards)
        books = Books(max_rate=config.max_reject_rate)
        books.add(plan.rejects, packed=0)
        books.add(gathered.rejects, packed=sum(len(contents.pairs) for contents in gathered.contents))
        books.check(finished=True)
    except CorpusError as error:
        missing = missing_shards(folder, plan.parts, plan.shards)
        done = gather_parts(plan.parts, [shard for shard in plan.shards if shard not in missing])
        write_rejects(folder / "rejects.jsonl", [*plan.rejects, *done.rejects])
        raise CorpusError(
            f"{error}\nEvery one is listed in {folder / 'rejects.jsonl'}. Mend the corpus, or allow more: "
            "max_reject_rate=0.5"
        ) from error
    packed_with: dict[str, Any] = dict.fromkeys(STAGES) | {
        stage: {"settings": settings[stage]} for stage in settings
    }
    packed_with["photos"] |= {
        "plan": plan.digest,
        "image_root": str(raw.image_root(config.corpus).resolve()),
        "versions": {"promptmeup": __version__, "pillow": metadata.version("pillow")},
    }
    for stage, makers in gathered.made_by.items():
        packed_with[stage]["by"] = makers
    _finish(folder, gathered, [*plan.rejects, *gathered.rejects], books, packed_with, start=start)


def _begun_update(folder: Path, config: PackConfig, settings: Settings) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest before, and the stages of, an update that was interrupted.

    Raises:
        ShardError: `config` asks for something else.
    """
    begun = json.loads((folder / WORK / "update.json").read_text(encoding="utf-8"))
    wanted = {stage: settings[stage] for stage in begun["settings"] if config.makes(stage)}
    if changed := differences(begun["settings"], wanted):
        raise ShardError(
            f"{folder}: replacing its {' and '.join(begun['settings'])} was interrupted; finish it first, with "
            f"the command of then ({changed})"
        )
    return manifest_of(begun["manifest"]), tuple(begun["settings"])


def _update(
    folder: Path, config: PackConfig, settings: Settings, before: Manifest, stages: tuple[str, ...]
) -> None:
    """Make `stages` anew in every shard; until all are done the split has no manifest, so that none reads it."""
    if not before.shards[config.task :: config.num_tasks]:
        # a task that comes when the others are done must not begin anew what it has no part in
        print(f"{folder}: task {config.task} of {config.num_tasks} has no share of its shards", flush=True)
        return
    start, work = time.monotonic(), folder / WORK
    settings = {stage: settings[stage] for stage in stages}
    work.mkdir(exist_ok=True)
    plan = None
    if "boxes" in stages and config.corpus.boxes is not None:
        # cut as the photos were, whatever is set now
        samples = before.packed_with["photos"]["settings"]["samples_per_shard"]
        plan = _plan(folder.name, folder, config, {"update": settings}, samples_per_shard=samples)
        if plan.digest != before.packed_with["photos"]["plan"]:
            raise ShardError(
                f"{config.corpus.root} is not the corpus that {folder} was packed of, or it changed; "
                "pack it into another folder"
            )
    begun = {"settings": settings, "manifest": asdict(before)}
    parts = parts_folder(work, begun)
    write_json(work / "update.json", begun)
    (folder / "manifest.json").unlink(missing_ok=True)
    maker = ShardMaker(
        folder=folder,
        parts=parts,
        plan=plan,
        photos=None,
        boxes="boxes" in stages,
        detector=config.detector,
        entities=config.entities if "entities" in stages else None,
    )
    counts = {entry.name: entry.samples for entry in before.shards}
    if not _make_shards(maker, tuple(counts), counts, config):
        return
    gathered = gather_parts(parts, counts)
    new = [reject for reject in plan.rejects if reject.reason in BOX_REASONS] if plan else []
    rejects = rejects_after_update(folder, [*new, *gathered.rejects], boxes="boxes" in stages)
    books = Books(max_rate=1.0)
    books.add(rejects, packed=before.pairs)
    packed_with = before.packed_with | {
        stage: {"settings": settings[stage], "by": gathered.made_by[stage]} for stage in stages
    }
    if config.redo and _job() is not None:
        for stage in stages:
            packed_with[stage] |= {"redone_by": _job()}
    _finish(folder, gathered, rejects, books, packed_with, start=start)


def _finish(
    folder: Path,
    gathered: Gathered,
    rejects: Sequence[Reject],
    books: Books,
    packed_with: dict[str, Any],
    *,
    start: float,
) -> None:
    manifest = finish_split(folder, gathered, rejects=rejects, books=books, packed_with=packed_with)
    _remove_work(folder / WORK)
    print(_summary(folder, manifest, books, seconds=time.monotonic() - start), flush=True)


def _make_shards(
    maker: ShardMaker, shards: tuple[str, ...], samples: dict[str, int], config: PackConfig
) -> bool:
    """Make this task's share of what is missing of `shards`; return whether all of them are done then.

    Raises:
        CorpusError: too many pairs are lost.
    """
    share = shards[config.task :: config.num_tasks]
    missing = missing_shards(maker.folder, maker.parts, share)
    if len(missing) < len(share):
        print(f"{maker.folder}: {len(share) - len(missing)} of {len(share)} shards are done", flush=True)
    books = Books(max_rate=config.max_reject_rate)
    with Progress(
        f"pack {maker.folder.name}", unit="images", total=sum(samples[shard] for shard in missing)
    ) as bar:
        for part in run_processes(
            maker, missing, processes=config.processes or available_cores(), count=bar.advance
        ):
            books.add(part.rejects, packed=part.pairs)
            bar.advance(0, lost=f"{books.lost} pairs")
            if maker.photos:
                books.check()
    left = missing_shards(maker.folder, maker.parts, shards)
    if left and (maker.folder / "manifest.json").exists():
        print(f"{maker.folder}: finished by another task", flush=True)
    elif left:
        print(
            f"{maker.folder}: task {config.task} of {config.num_tasks} is done, {len(left)} of {len(shards)} "
            "shards are left to the other tasks; the last of them finishes the split",
            flush=True,
        )
    return not left


def _job() -> str | None:
    """Return the number of this Slurm job, which all tasks of an array have in common, also when queued again."""
    return os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))


def _is_of_this_job(made: dict[str, Any]) -> bool:
    return _job() is not None and made.get("redone_by") == _job()


def _check_splits(config: PackConfig) -> None:
    """Refuse a split that is neither packed nor in the corpus, before any work."""
    begun = ("manifest.json", f"{WORK}/update.json")
    new = [name for name in config.splits if not any((config.out / name / file).exists() for file in begun)]
    if not new or not config.makes("photos"):
        return
    known = raw.splits(config.corpus)
    if unknown := [name for name in new if name not in known]:
        raise CorpusError(
            f"{config.corpus.root} has no split {', '.join(unknown)}; there: {', '.join(known) or 'none'}; "
            "choose with splits=[...]"
        )


def _plan(
    split: str, folder: Path, config: PackConfig, settings: dict[str, Any], *, samples_per_shard: int
) -> Plan:
    def read(reject: Callable[[Reject], None]) -> Iterable[Sample]:
        return raw.samples(config.corpus, split=split, reject=reject)

    return make_plan(read, folder / WORK, samples_per_shard=samples_per_shard, settings=settings)


def _remove_work(work: Path) -> None:
    """Remove the work folder; first what says that there is work to go on with."""
    for name in ("update.json", "plan.json"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _summary(folder: Path, manifest: Manifest, books: Books, *, seconds: float) -> str:
    boxes = sum(entry.boxes for entry in manifest.shards)
    megabytes = sum(entry.bytes for entry in manifest.shards) / 1e6
    lines = [
        f"packed {manifest.split}: {manifest.samples} images, {manifest.pairs} pairs "
        f"({manifest.matched_pairs} matched), {boxes} boxes ({boxes / manifest.samples:.1f} an image) "
        f"in {seconds:.0f} s ({manifest.samples / seconds:.1f} images/s)",
        f"  {folder}: {len(manifest.shards)} shards, {megabytes:.1f} MB, fingerprint {manifest.fingerprint}",
    ]
    if table := books.table():
        lines += [f"left out or incomplete, see {folder / 'rejects.jsonl'}:", table]
    return "\n".join(lines)
