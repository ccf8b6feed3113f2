"""Packing shard by shard: in stages, by tasks and processes, stopped anywhere, with the same bytes every time."""

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptmeup.data.reader import PackedSplit
from promptmeup.errors import CorpusError, ShardError
from promptmeup.packing import pack as packing
from promptmeup.packing import parts, rejects, shard_maker
from promptmeup.packing.entities import EntityConfig, EntityFinder
from promptmeup.packing.pack import pack
from promptmeup.packing.plan import make_plan
from promptmeup.packing.settings import PackConfig
from promptmeup.records import Sample
from promptmeup.shard_format import read_manifest
from tests.support.photos import write_photo

BOX = {"x0": 12, "y0": 8, "x1": 48, "y1": 40, "label": "person", "score": 0.9}
TEXTS = ("Angela Merkel speaks in Berlin.", "Two dogs chase a ball.", "Dogs.")


@pytest.fixture(autouse=True)
def _one_finder(finder: EntityFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load spaCy once for all tests of this file."""

    def load(config: EntityConfig) -> EntityFinder:
        return finder

    monkeypatch.setattr(shard_maker, "_finder", load)


def write_corpus(root: Path, *, photos: int = 10, missing: int = 0, per_photo: int = 2) -> Path:
    """Write photos with captions in a table, the first `missing` of them only named there."""
    rows, boxes = [], []
    for i in range(photos):
        name = f"photos/{i:03}.jpg"
        if i >= missing:
            write_photo(root / name, (96, 64), quality=60 + i % 40)
        rows += [{"image": name, "caption": f"{TEXTS[(i + j) % 3]} {i % 7}"} for j in range(per_photo)]
        # the second photo has a box outside as well, the third none, and nobody looked at the fourth
        more = [BOX | {"x0": 200, "x1": 300}] if i == 1 else []
        if i != 3:
            boxes.append({"image_path": name, "boxes": [] if i == 2 else [BOX, *more]})
    root.mkdir(exist_ok=True)
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boxes))
    return root


def settings(root: Path, out: Path, *, boxes: str | None = "boxes.jsonl", **more: Any) -> PackConfig:
    corpus = {"kind": "tabular", "root": str(root), "files": {"train": "train.jsonl"}, "boxes": boxes}
    how = {"out": str(out), "splits": ["train"], "shorter_side": 48, "samples_per_shard": 3, "processes": 1}
    return PackConfig.model_validate_json(json.dumps({"corpus": corpus} | how | more), strict=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "news")


@pytest.fixture
def expected(corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    pack(settings(corpus, tmp_path / "expected"))
    found = files(tmp_path / "expected/train")
    assert len(found) == 4 + 5, "four shards and five other files; the work folder is gone"
    return found


def test_what_is_packed_is_what_the_corpus_says(corpus: Path, tmp_path: Path) -> None:
    pack(settings(corpus, tmp_path / "out"))
    split = PackedSplit(tmp_path / "out/train")
    records = [split.read_json(i) for i in range(len(split))]
    assert [record["image_path"] for record in records] == [f"photos/{i:03}.jpg" for i in range(10)]
    assert all(
        (r["width"], r["height"], r["original_width"], r["original_height"]) == (72, 48, 96, 64)
        for r in records
    )
    assert records[0]["boxes"] == [
        {"x0": 9.0, "y0": 6.0, "x1": 36.0, "y1": 30.0, "label": "person", "score": 0.9}
    ]
    assert [len(record["boxes"]) for record in records] == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    assert {record["boxes_by"] for record in records} == {"corpus"}
    assert {entity["text"] for entity in records[0]["captions"][0]["entities"]} >= {"Angela Merkel", "Berlin"}
    assert records[1]["captions"][0]["nouns"][0] == {"start": 4, "end": 8, "text": "dogs", "label": "dog"}
    manifest = split.manifest
    assert manifest.rejects == {"no_detections": 4, "bad_box": 2}
    assert manifest.pairs == len(np.load(split.folder / "pairs.npy")) == 20
    lines = [json.loads(line) for line in (split.folder / "rejects.jsonl").read_text().splitlines()]
    assert [(line["item"], line["reason"]) for line in lines] == [
        ("photos/001.jpg", "bad_box"),
        ("photos/002.jpg", "no_detections"),
        ("photos/003.jpg", "no_detections"),
    ]
    assert "Angela Merkel\t7\tentity" in (split.folder / "entities.tsv").read_text().splitlines()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_tasks_share_the_work_and_the_last_one_finishes(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes], order: tuple[int, ...]
) -> None:
    for task in order:
        assert not (tmp_path / "out/train/manifest.json").exists()
        pack(settings(corpus, tmp_path / "out", task=task, num_tasks=3))
    assert files(tmp_path / "out/train") == expected


def test_a_task_without_a_share_that_comes_late_leaves_everything_alone(corpus: Path, tmp_path: Path) -> None:
    for task in (1, 0):
        pack(settings(corpus, tmp_path / "out", stage="photos", task=task, num_tasks=2))
    before = files(tmp_path / "out/train")
    for stage in ("all", "boxes"):
        pack(settings(corpus, tmp_path / "out", stage=stage, redo=stage == "boxes", task=4, num_tasks=5))
        assert files(tmp_path / "out/train") == before


@pytest.mark.timeout(120)
def test_processes_give_the_same_bytes(corpus: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    pack(settings(corpus, tmp_path / "out", processes=2))
    assert files(tmp_path / "out/train") == expected


@pytest.mark.parametrize(
    "stages", [("photos", "boxes", "entities"), ("photos", "entities", "boxes"), ("photos", "all")]
)
def test_stage_by_stage_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes], stages: tuple[str, ...]
) -> None:
    for stage in stages:
        # the first stage may not even know where boxes come from
        boxes = None if stage == "photos" else "boxes.jsonl"
        pack(settings(corpus, tmp_path / "out", stage=stage, boxes=boxes))
        PackedSplit(tmp_path / "out/train")  # readable after every stage
    assert files(tmp_path / "out/train") == expected


def test_a_skipped_stage_is_named_as_such(corpus: Path, tmp_path: Path) -> None:
    pack(settings(corpus, tmp_path / "out", stage="photos"))
    split = PackedSplit(tmp_path / "out/train")
    assert split.manifest.packed_with["boxes"] is None
    assert (split.read_json(0)["boxes_by"], split.read_json(0)["entities_by"]) == (None, None)
    assert not (split.folder / "entities.tsv").exists()
    assert split.manifest.rejects == {}


def test_a_stage_needs_photos(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="stage=boxes needs its photos"):
        pack(settings(corpus, tmp_path / "out", stage="boxes"))


def test_boxes_are_replaced_and_nothing_else(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    pack(settings(corpus, tmp_path / "out"))
    before = PackedSplit(tmp_path / "out/train")
    photos = [before.read_image(i) for i in range(10)]
    lines = [json.dumps({"image_path": f"photos/{i:03}.jpg", "boxes": [BOX] * 2}) for i in range(10)]
    (corpus / "better.jsonl").write_text("\n".join(lines))
    with pytest.raises(ShardError, match=r"boxes were packed with other settings .*stage=boxes"):
        pack(settings(corpus, tmp_path / "out", boxes="better.jsonl"))
    pack(settings(corpus, tmp_path / "out", boxes="better.jsonl", stage="boxes"))
    after = PackedSplit(tmp_path / "out/train")
    assert [after.read_image(i) for i in range(10)] == photos
    assert [len(after.read_json(i)["boxes"]) for i in range(10)] == [2] * 10
    assert after.manifest.rejects == {}
    assert after.manifest.fingerprint != before.manifest.fingerprint
    assert (after.folder / "entities.tsv").read_bytes() == expected["entities.tsv"]
    pack(settings(corpus, tmp_path / "out", stage="boxes"))
    assert files(tmp_path / "out/train") == expected, "and back again"


def test_other_boxes_under_the_same_name_are_noticed(corpus: Path, tmp_path: Path) -> None:
    pack(settings(corpus, tmp_path / "out"))
    (corpus / "boxes.jsonl").write_text("")
    with pytest.raises(ShardError, match=r"boxes were packed with other settings \(corpus_sha256 was"):
        pack(settings(corpus, tmp_path / "out"))
    (corpus / "boxes.jsonl").unlink()
    pack(settings(corpus, tmp_path / "out"))  # finished, and the corpus may be gone


def test_boxes_are_found_in_shards_of_another_size_than_set_now(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    for now in (2, 5):
        out = tmp_path / str(now)
        pack(settings(corpus, out, stage="photos"))
        for stage in ("boxes", "entities"):
            pack(settings(corpus, out, stage=stage, samples_per_shard=now))
        assert files(out / "train") == expected


def test_what_is_said_of_the_boxes_file_is_said_of_the_one_in_use(corpus: Path, tmp_path: Path) -> None:
    def said() -> list[str]:
        lines = (tmp_path / "out/train/rejects.jsonl").read_text().splitlines()
        return [f"{line['item']} {line['reason']}" for line in map(json.loads, lines)]

    good = (corpus / "boxes.jsonl").read_text()
    (corpus / "boxes.jsonl").write_text("{}\n" + good)
    pack(settings(corpus, tmp_path / "out", stage="photos"))
    for text, expected in ((good, 0), ("{}\n" + good, 1), (good, 0)):
        (corpus / "boxes.jsonl").write_text(text)
        pack(settings(corpus, tmp_path / "out", stage="boxes"))
        assert said().count("boxes.jsonl line 1 malformed_boxes") == expected
        assert len(said()) == 3 + expected


def test_weights_that_are_downloaded_meanwhile_change_no_name(tmp_path: Path) -> None:
    """The first task finds none, and fetches them; the second one goes on in the same folder."""
    sample = Sample("0" * 16, "a.jpg", (), None)
    folders = set()
    for sha256 in (None, "c0ffee"):
        detector = {"boxes": {"detector": {"weights": "yolo11n.pt", "weights_sha256": sha256}}}
        plan = make_plan(lambda _: [sample], tmp_path, samples_per_shard=1, settings=detector)
        folders.add(plan.parts)
    assert len(folders) == 1
    detector["boxes"]["detector"]["weights_sha256"] = "decade"
    with pytest.raises(ShardError, match=r"weights_sha256 was c0ffee, is decade"):
        make_plan(lambda _: [sample], tmp_path, samples_per_shard=1, settings=detector)


def test_a_job_makes_a_stage_anew_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that is queued again, when the others have finished the split and ended, leaves it alone."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    pack(settings(corpus, tmp_path / "out"))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    again = {"stage": "boxes", "redo": True, "num_tasks": 2}
    for task in (0, 1):
        pack(settings(corpus, tmp_path / "out", task=task, **again))
    assert "packed train: 10 images" in capsys.readouterr().out
    pack(settings(corpus, tmp_path / "out", task=0, **again))
    assert "nothing to do" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    pack(settings(corpus, tmp_path / "out", task=0, **again))
    assert "left to the other tasks" in capsys.readouterr().out


def test_the_same_stage_again_does_nothing_unless_asked(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(settings(corpus, tmp_path / "out"))
    folder = tmp_path / "out/train"
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    pack(settings(corpus, tmp_path / "out", stage="entities"))
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "nothing to do" in capsys.readouterr().out
    before = files(folder)
    pack(settings(corpus, tmp_path / "out", stage="entities", redo=True))
    assert times != {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before == files(folder)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(params=["write_shard", "read_shard", "write_part", "write_index", "write_manifest"])
def killer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts down at each call of a function and dies at zero, before the call does anything."""
    from promptmeup.packing import finish

    module = finish if request.param in ("write_index", "write_manifest") else shard_maker
    original = getattr(module, request.param)
    # in a run, dies at the second shard, or at the end
    state = {"fatal": 1 if module is finish else 2, "deaths": 1 if module is finish else 3, "left": -1}

    def call(*args: Any, **more: Any) -> Any:
        state["left"] -= 1
        if state["left"] == 0:
            raise Killed
        return original(*args, **more)

    monkeypatch.setattr(module, request.param, call)
    return state


def test_stopped_anywhere_it_goes_on(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes], killer: dict[str, int]
) -> None:
    for stages in (("all",), ("photos", "boxes", "entities")):
        out = tmp_path / "-".join(stages)
        for stage in stages:
            for _ in range(killer["deaths"]):
                killer["left"] = killer["fatal"]
                with pytest.raises(Killed):
                    pack(settings(corpus, out, stage=stage))
                assert not (out / "train/manifest.json").exists()
            killer["left"] = -1
            pack(settings(corpus, out, stage=stage))
        assert files(out / "train") == expected


def test_a_rerun_makes_only_what_is_missing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "finish_split", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pack(settings(corpus, tmp_path / "out"))
    monkeypatch.undo()
    folder = tmp_path / "out/train"
    (folder / "shard-000001.tar").unlink()
    (folder / "shard-000002.tar").write_bytes(b"cut")
    times = {n: (folder / f"shard-00000{n}.tar").stat().st_mtime_ns for n in range(4) if n != 1}
    pack(settings(corpus, tmp_path / "out"))
    assert "2 of 4 shards are done" in capsys.readouterr().out
    again = {n: (folder / f"shard-00000{n}.tar").stat().st_mtime_ns for n in range(4) if n != 1}
    assert [n for n in times if times[n] != again[n]] == [2]


def test_other_settings_or_another_corpus_do_not_mix_with_what_is_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "finish_split", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pack(settings(corpus, tmp_path / "out"))
    with pytest.raises(ShardError, match=r"unfinished packing .*photos\.jpeg_quality was 90, is 80"):
        pack(settings(corpus, tmp_path / "out", jpeg_quality=80))
    with (corpus / "train.jsonl").open("a") as file:
        file.write(json.dumps({"image": "photos/000.jpg", "caption": "One more."}) + "\n")
    with pytest.raises(ShardError, match=r"unfinished packing .*the corpus changed"):
        pack(settings(corpus, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out/train/.packing")
    with pytest.raises(ShardError, match="holds shards that are of no finished split"):
        pack(settings(corpus, tmp_path / "out"))


def test_an_interrupted_stage_is_finished_before_another(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(settings(corpus, tmp_path / "out", stage="photos"))
    monkeypatch.setattr(packing, "finish_split", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pack(settings(corpus, tmp_path / "out", stage="boxes"))
    monkeypatch.undo()
    with pytest.raises(ShardError, match="replacing its boxes was interrupted; finish it first"):
        pack(settings(corpus, tmp_path / "out", stage="entities"))
    with pytest.raises(ShardError, match="no manifest"):
        PackedSplit(tmp_path / "out/train")
    pack(settings(corpus, tmp_path / "out", stage="boxes"))
    assert len(PackedSplit(tmp_path / "out/train")) == 10


def test_a_full_disk_is_a_clear_error_and_costs_nothing(
    corpus: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    size = max(len(content) for name, content in expected.items() if name.endswith(".tar"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (size // 2, hard)
    )  # a file cannot grow: what a full disk does too
    try:
        with pytest.raises(
            ShardError, match=r"cannot read or write .*: File too large; make room .*goes on where it"
        ):
            pack(settings(corpus, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path.name for path in (tmp_path / "out/train").iterdir() if path.name != ".packing"]
    assert left == [], "no half-written file under a final name"
    pack(settings(corpus, tmp_path / "out"))
    assert files(tmp_path / "out/train") == expected


def test_too_many_rejects_stop_with_a_summary(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "news", missing=2)
    with pytest.raises(CorpusError) as caught:
        pack(settings(corpus, tmp_path / "out", max_reject_rate=0.1))
    message = str(caught.value)
    assert "4 of 20 pairs (20.0%)" in message
    assert "max_reject_rate=0.1" in message
    assert "2 items; first: photos/000.jpg: no such file" in message
    assert str(tmp_path / "out/train/rejects.jsonl") in message
    assert not (tmp_path / "out/train/manifest.json").exists()
    assert len((tmp_path / "out/train/rejects.jsonl").read_text().splitlines()) == 4, "two about boxes"
    pack(settings(corpus, tmp_path / "out", max_reject_rate=0.2))
    assert read_manifest(tmp_path / "out/train").pairs == 16


def test_too_many_bad_rows_stop_before_a_photo_is_packed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "PAIRS_BEFORE_JUDGING", 20)
    with (corpus / "train.jsonl").open("a") as file:
        file.write('{"image": "photos/000.jpg"}\n' * 4)
    with pytest.raises(CorpusError, match=r"4 of 24 pairs \(16\.7%\) cannot be packed"):
        pack(settings(corpus, tmp_path / "out", max_reject_rate=0.1))
    folder = tmp_path / "out/train"
    assert not list(folder.glob("*.tar"))
    assert len((folder / "rejects.jsonl").read_text().splitlines()) == 4
    pack(settings(corpus, tmp_path / "out", max_reject_rate=0.2))
    assert read_manifest(folder).pairs == 20


def test_a_hopeless_corpus_stops_early(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "news", photos=600, missing=600)
    with pytest.raises(CorpusError, match=r"1\d\d\d of 1\d\d\d pairs \(100.0%\) cannot be packed"):
        pack(settings(corpus, tmp_path / "out", samples_per_shard=20))
    assert len(list((tmp_path / "out/train/.packing").glob("parts-*/*"))) == 25


def test_a_shard_of_which_nothing_is_left_is_not_written(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "news", missing=3)
    pack(settings(corpus, tmp_path / "out", max_reject_rate=0.5))
    manifest = read_manifest(tmp_path / "out/train")
    assert [entry.name for entry in manifest.shards] == [f"shard-00000{n}.tar" for n in (1, 2, 3)]
    split = PackedSplit(tmp_path / "out/train")
    assert [split.read_json(i)["image_path"] for i in (0, 6)] == ["photos/003.jpg", "photos/009.jpg"]
    assert split.read_image(6)


@pytest.mark.parametrize(
    ("photos", "missing", "said"), [(0, 0, "no pair is usable"), (1, 1, "of 2 pairs none is left")]
)
def test_a_split_of_which_nothing_is_left_is_refused(
    tmp_path: Path, photos: int, missing: int, said: str
) -> None:
    corpus = write_corpus(tmp_path / "news", photos=photos, missing=missing)
    with pytest.raises(CorpusError, match=said):
        pack(settings(corpus, tmp_path / "out", max_reject_rate=1.0))


def test_a_part_is_read_back_as_it_was_written(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(work: Path, shard: str, part: parts.Part) -> None:
        parts.write_part(work, shard, part)
        again = parts.read_part(work, shard)
        assert again.contents is not None and part.contents is not None
        assert (again.contents.index == part.contents.index).all()
        assert (again.contents.pairs == part.contents.pairs).all()
        assert (again.rejects, again.names, again.made_by) == (part.rejects, part.names, part.made_by)
        written.append(shard)

    monkeypatch.setattr(shard_maker, "write_part", write)
    pack(settings(corpus, tmp_path / "out"))
    assert len(written) == 4
    assert not os.path.exists(tmp_path / "out/train/.packing")
