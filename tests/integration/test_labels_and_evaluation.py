"""Labelling and evaluation through their commands' functions, on a packed world."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from promptmeup.config import load
from promptmeup.data.reader import LabelReader, PackedSplit
from promptmeup.errors import ConfigError, ShardError, WeightsError
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.prompts.bank import load_banks
from promptmeup.prompts.crops import cut_crops, decode, resize_square
from promptmeup.training.evaluate import EvaluateConfig, evaluate
from promptmeup.training.inputs import choose_labels
from promptmeup.training.label import LabelRunConfig, label
from promptmeup.training.teacher import SavedTeacher, open_teacher
from tests.support.clip import save_clip
from tests.support.real_data import ROOT


def run_label(world: Path, split: Path, *overrides: str) -> None:
    label(
        load(
            LabelRunConfig,
            ROOT / "configs/label/tiny.yaml",
            [f"teacher={world}/teacher/model", f"splits=[{split}]", "temperature=0.003", *overrides],
        )
    )


def test_labels_are_the_teachers_softmax(news_world: Path) -> None:
    """One object and one image, computed here step by step."""
    split = PackedSplit(news_world / "packed/train")
    folder = choose_labels(split.folder, None)
    reader = LabelReader(folder, split)
    banks = load_banks(folder, corpus=split.manifest.fingerprint)
    teacher = SavedTeacher(news_world / "teacher/model", device=torch.device("cpu"))
    sample = next(i for i in range(len(split)) if split.index["boxes"][i] > 1)
    boxes = [[b[k] for k in ("x0", "y0", "x1", "y1")] for b in split.read_json(sample)["boxes"]]
    image = decode(split.read_image(sample))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    for pixels, bank, (ids, probs) in (
        (cut_crops(image, np.array(boxes), size=32), banks.entities_KD, reader.objects(sample)),
        (resize_square(image, size=32)[None], banks.relations_KD, reader.image(sample)),
    ):
        vectors = teacher.encode_images((pixels / 255 - mean) / std)
        expected = torch.softmax(vectors @ bank.T / 0.003, dim=-1)
        ids, probs = np.atleast_2d(ids), np.atleast_2d(probs)
        found = np.take_along_axis(expected.numpy(), ids, axis=1)
        np.testing.assert_allclose(probs, found, atol=2e-3)
        assert (ids[:, 0] == expected.argmax(dim=1).numpy()).all()


def test_rerun_does_nothing_and_processes_agree(news_world: Path, tmp_path: Path) -> None:
    split = tmp_path / "train"
    shutil.copytree(news_world / "packed/train", split)
    folder = choose_labels(split, None)
    before = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    run_label(news_world, split)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == times
    # a lost file is made again, byte for byte
    (folder / sorted(before)[0]).unlink()
    run_label(news_world, split)
    assert {path.name: path.read_bytes() for path in folder.glob("*.npy")} == before


def test_choosing_labels(news_world: Path, tmp_path: Path) -> None:
    split = tmp_path / "train"
    shutil.copytree(news_world / "packed/train", split)
    name = choose_labels(split, None).name
    assert choose_labels(split, name).name == name
    with pytest.raises(ConfigError, match=rf"nonsense.*it has {name}"):
        choose_labels(split, "nonsense")
    run_label(news_world, split, "num_kept=4")
    with pytest.raises(ConfigError, match=r"2 sets of soft labels .*choose one with data\.labels=NAME"):
        choose_labels(split, None)
    shutil.rmtree(split / "labels")
    with pytest.raises(ConfigError, match=r"run launch/label\.py"):
        choose_labels(split, None)


def test_a_renamed_folder_of_labels_is_refused(news_world: Path, tmp_path: Path) -> None:
    split = tmp_path / "train"
    shutil.copytree(news_world / "packed/train", split)
    folder = choose_labels(split, None)
    folder.rename(folder.with_name("another-name"))
    with pytest.raises(ShardError, match=rf"another-name are those of bank {folder.name}"):
        LabelReader(folder.with_name("another-name"), PackedSplit(split))


def test_labels_of_other_boxes_are_not_taken_for_finished(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    shutil.copytree(news_world / "packed", out)
    before = choose_labels(out / "train", None)
    lines = (news_world / "corpus/visual_news/origin/boxes.jsonl").read_text().splitlines()
    moved = [json.loads(line) for line in lines]
    for line in moved:  # as many boxes as before, elsewhere
        for box in line["boxes"]:
            box["x1"] = box["x0"] + 0.7 * (box["x1"] - box["x0"])
    boxes = tmp_path / "moved.jsonl"
    boxes.write_text("\n".join(json.dumps(line) for line in moved))
    settings = [f"corpus.root={news_world}/corpus", f"out={out}", "samples_per_shard=25", "stage=boxes"]
    pack(load(PackConfig, ROOT / "configs/pack/synthetic.yaml", [*settings, f"corpus.boxes={boxes}"]))
    with pytest.raises(ConfigError, match=r"no soft labels \(1 of what it was before.*launch/label\.py"):
        choose_labels(out / "train", None)
    run_label(news_world, out / "train")
    after = choose_labels(out / "train", None)
    objects, images = (
        [np.load(folder / f"shard-000000.{kind}.npy") for folder in (before, after)]
        for kind in ("objects", "images")
    )
    assert (objects[0] != objects[1]).any()
    assert (images[0] == images[1]).all()


def test_a_split_without_boxes_is_not_labelled(news_world: Path, tmp_path: Path) -> None:
    settings = [f"corpus.root={news_world}/corpus", f"out={tmp_path}", "splits=[val]", "stage=photos"]
    pack(load(PackConfig, ROOT / "configs/pack/synthetic.yaml", settings))
    with pytest.raises(
        ShardError, match=r"packed without boxes and entities.*stage=boxes and stage=entities"
    ):
        run_label(news_world, tmp_path / "val")


def test_labels_of_another_corpus_are_refused(news_world: Path) -> None:
    folder = choose_labels(news_world / "packed/train", None)
    val = PackedSplit(news_world / "packed/val")
    with pytest.raises(ShardError, match=val.manifest.fingerprint):
        LabelReader(folder, val)


def test_evaluate_command(news_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, ranks = tmp_path / "numbers.json", tmp_path / "ranks.jsonl"
    evaluate(
        EvaluateConfig(
            model=news_world / "teacher/best",
            split=str(news_world / "packed/val"),
            json_file=out,
            ranks_file=ranks,
        )
    )
    shown = capsys.readouterr().out
    assert "21 images, 42 matched captions" in shown
    assert "image -> text" in shown
    assert "captions of at most 40 tokens, photos seen whole" in shown, "as in training"
    run = shutil.copytree(news_world / "teacher", tmp_path / "teacher")
    for config in run.glob("config*.yaml"):
        config.write_text(config.read_text().replace("max_tokens: 40", "max_tokens: 16"))
    evaluate(EvaluateConfig(model=run / "best", split=str(news_world / "packed/val")))
    assert "captions of at most 16 tokens, photos seen whole" in capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert 0 <= numbers["mean_recall"] <= 1
    assert numbers["images"] == 21
    lines = [json.loads(line) for line in ranks.read_text().splitlines()]
    for direction, queries in (("image_to_text", 21), ("text_to_image", 42)):
        own = [line["rank"] for line in lines if line["direction"] == direction]
        assert len(own) == queries
        assert sum(rank < 5 for rank in own) / queries == pytest.approx(numbers[f"{direction}_r5"])

    evaluate(
        EvaluateConfig(
            model=news_world / "teacher/best",
            split=str(news_world / "packed/val"),
            max_tokens=9,
            eval_mode="center",
        )
    )
    assert "captions of at most 9 tokens, photos seen center" in capsys.readouterr().out

    with pytest.raises(WeightsError, match="holds no saved model"):
        evaluate(EvaluateConfig(model=tmp_path, split=str(news_world / "packed/val")))
    with pytest.raises(ShardError, match="it holds the packed splits train, val"):
        evaluate(EvaluateConfig(model=news_world / "teacher/best", split=str(news_world / "packed")))


def test_a_clip_directory_labels_too(news_world: Path, tmp_path: Path) -> None:
    split, folder = tmp_path / "train", save_clip(tmp_path / "clip")
    shutil.copytree(news_world / "packed/train", split, ignore=shutil.ignore_patterns("labels"))
    run_label(news_world, split, f"teacher={folder}", "temperature=null")
    labels = choose_labels(split, None)
    assert labels.name != choose_labels(news_world / "packed/train", None).name
    teacher = open_teacher(str(folder), device=torch.device("cpu"))
    packed = PackedSplit(split)
    banks = load_banks(labels, corpus=packed.manifest.fingerprint)
    image = resize_square(decode(packed.read_image(0)), size=teacher.image_size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    vectors = teacher.encode_images(((image / 255 - mean) / std)[None])
    expected = torch.softmax(vectors @ banks.relations_KD.T / teacher.temperature, dim=-1)[0].numpy()
    ids, probs = LabelReader(labels, packed).image(0)
    np.testing.assert_allclose(probs, expected[ids], atol=1e-3)
    assert ids[0] == expected.argmax()
