"""shards/pack.py's work from a NewsCLIPpings folder to manifests, without a detector."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptmeup import config as configuration
from promptmeup.errors import ConfigError, CorpusError, ShardError, WeightsError
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.shard_format import corpus_fingerprint, file_sha256, read_manifest
from tests.support.photos import write_photo
from tests.support.real_data import ROOT


def write_corpus(root: Path, *, bad: bool = False) -> Path:
    """Write six photos with a caption each, shown with its own photo and with the next one's."""
    origin = root / "visual_news" / "origin"
    names = [f"guardian/images/0001/{i:03}.jpg" for i in range(6)]
    for name in names:
        write_photo(origin / name)
    records = [
        {"id": i, "caption": f"Theresa May meets voters in Leeds, day {i}.", "image_path": f"./{name}"}
        for i, name in enumerate(names)
    ]
    pairs = [(i, (i + shift) % 6) for shift in (0, 1) for i in range(6)]
    if bad:
        (origin / names[1]).unlink()
        (origin / names[2]).write_bytes(b"\xff\xd8\xff\xe0")
        records[3]["caption"] = "  "
        pairs.append((77, 0))
    annotations = [{"id": c, "image_id": i, "falsified": c != i} for c, i in pairs]
    (origin / "data.json").write_text(json.dumps(records))
    box = {"x0": 10, "y0": 10, "x1": 40, "y1": 60, "label": "person", "score": 0.8}
    lines = [{"image_path": name, "boxes": [box]} for name in names[:5]]
    (root / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = root / "news_clippings" / "data" / "merged_balanced"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps({"annotations": annotations}))
    return root


def settings(root: Path, out: Path, **more: Any) -> PackConfig:
    corpus = {"kind": "newsclippings", "root": str(root), "boxes": "boxes.jsonl"}
    how = {"out": str(out), "shorter_side": 48, "processes": 1}
    return PackConfig.model_validate_json(json.dumps({"corpus": corpus} | how | more), strict=True)


def test_a_corpus_becomes_splits_with_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(write_corpus(tmp_path / "news"), tmp_path / "out", samples_per_shard=4)
    pack(config)
    said = capsys.readouterr().out
    assert "packed train: 6 images, 12 pairs (6 matched), 5 boxes (0.8 an image) in " in said
    assert "no_detections" in said
    for split in ("train", "val"):
        folder = tmp_path / "out" / split
        manifest = read_manifest(folder)
        assert (manifest.split, manifest.samples, manifest.pairs, manifest.matched_pairs) == (split, 6, 12, 6)
        assert manifest.rejects == {"no_detections": 2}
        assert manifest.fingerprint == corpus_fingerprint(manifest.shards)
        assert [entry.sha256 for entry in manifest.shards] == [
            file_sha256(folder / entry.name) for entry in manifest.shards
        ]
        photos, boxes, entities = (manifest.packed_with[stage] for stage in ("photos", "boxes", "entities"))
        assert photos["settings"]["shorter_side"] == 48
        assert set(photos["versions"]) == {"promptmeup", "pillow"}
        sha256 = file_sha256(tmp_path / "news/boxes.jsonl")
        assert boxes["settings"] == {"corpus": "boxes.jsonl", "corpus_sha256": sha256, "detector": None}
        assert entities["by"][0]["version"].startswith("3.")
        files = {path.name for path in folder.iterdir()} - {entry.name for entry in manifest.shards}
        assert files == {"manifest.json", "index.npy", "pairs.npy", "rejects.jsonl", "entities.tsv"}


def test_packing_twice_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    write_corpus(tmp_path / "news")
    for out in ("a", "b"):
        pack(settings(tmp_path / "news", tmp_path / out, splits=["val"]))
    files = {path.name: path.read_bytes() for path in (tmp_path / "a" / "val").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b" / "val").iterdir()}


def test_a_finished_split_is_skipped_and_an_unfinished_one_packed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(write_corpus(tmp_path / "news"), tmp_path / "out")
    pack(config)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()}
    shutil.rmtree(tmp_path / "out" / "val")
    # how the work is done may change; what comes out may not
    pack(config.model_copy(update={"max_reject_rate": 0.9}))
    said = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'train'}: packed already with these settings" in said
    assert "packed val: 6 images" in said
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").iterdir()}


def test_other_settings_for_a_finished_split_are_refused(tmp_path: Path) -> None:
    config = settings(write_corpus(tmp_path / "news"), tmp_path / "out")
    pack(config)
    with pytest.raises(
        ShardError, match=r"jpeg_quality was 90, is 80\); set out to another folder, or delete"
    ):
        pack(config.model_copy(update={"jpeg_quality": 80}))


def test_bad_input_is_counted_with_a_reason(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "news", bad=True)
    pack(settings(root, tmp_path / "out", splits=["train"], max_reject_rate=0.6))
    manifest = read_manifest(tmp_path / "out" / "train")
    assert manifest.rejects == {
        "missing_image": 2,
        "unreadable_image": 2,
        "empty_caption": 2,
        "unknown_caption_id": 1,
        "no_detections": 2,
    }
    lost = sum(number for reason, number in manifest.rejects.items() if reason != "no_detections")
    assert manifest.pairs + lost == 13


def test_too_much_bad_input_stops_without_a_manifest(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "news", bad=True)
    with pytest.raises(CorpusError, match=r"7 of 13 pairs \(53.8%\) cannot be packed"):
        pack(settings(root, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*/manifest.json"))


def test_an_unknown_split_is_refused_before_any_work(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "news")
    with pytest.raises(CorpusError, match=r"has no split dev; there: train, val"):
        pack(settings(root, tmp_path / "out", splits=["train", "dev"]))
    assert not (tmp_path / "out").exists()


def test_no_source_of_boxes_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set detector.weights to YOLO weights, or corpus.boxes"):
        configuration.load(
            PackConfig, None, ["corpus.kind=newsclippings", f"corpus.root={tmp_path}", f"out={tmp_path}"]
        )


@pytest.mark.parametrize("weights", ["nowhere/yolo11n.pt", "yolo.onnx", "weights.safetensors"])
def test_absent_weights_are_named(tmp_path: Path, weights: str) -> None:
    root = write_corpus(tmp_path / "news")
    with pytest.raises(WeightsError, match=f"there is no file {weights}"):
        pack(settings(root, tmp_path / "out", detector={"weights": weights}))


@pytest.mark.parametrize(
    ("out", "reason"), [("file", "Not a directory"), ("/proc/promptmeup", "No such file")]
)
def test_an_output_that_cannot_be_written_is_a_clear_error(tmp_path: Path, out: str, reason: str) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(ShardError, match=rf"cannot read or write .*: {reason}.*run the same command again"):
        pack(settings(write_corpus(tmp_path / "news"), tmp_path / out))


@pytest.mark.parametrize("name", ["newsclippings", "synthetic"])
def test_the_configurations_that_come_along_are_valid(name: str) -> None:
    config = configuration.load(PackConfig, ROOT / "configs" / "pack" / f"{name}.yaml")
    assert (config.detector is None) == (name == "synthetic")


def test_the_command_packs_and_explains_itself(tmp_path: Path) -> None:
    write_corpus(tmp_path / "news")
    command = [sys.executable, "shards/pack.py", "--config", "configs/pack/synthetic.yaml"]
    overrides = [f"corpus.root={tmp_path / 'news'}", "corpus.boxes=boxes.jsonl", f"out={tmp_path / 'out'}"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pack train: 6 of 6 images" in done.stderr, "plain lines where no terminal is"
    assert read_manifest(tmp_path / "out" / "val").pairs == 12
