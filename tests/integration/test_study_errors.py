"""Files with errors made on purpose go through the commands that read them."""

import json
import shutil
from pathlib import Path

from promptmeup.config import load
from promptmeup.corpora.synthetic import BOXES
from promptmeup.data.reader import PackedSplit
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.packing.verify import verify
from promptmeup.prompts.bank import load_banks
from promptmeup.shard_format import read_label_manifest
from promptmeup.study.box_errors import BoxErrorsConfig, make_box_errors
from promptmeup.study.entity_errors import EntityErrorsConfig, make_entity_errors
from promptmeup.study.label_errors import LabelErrorsConfig, shuffle_labels
from promptmeup.training.inputs import choose_labels
from promptmeup.training.label import LabelRunConfig, label
from tests.integration.conftest import tiny_config, train_on_rank
from tests.support.ranks import run_ranks
from tests.support.real_data import ROOT


def test_wrong_boxes_are_packed_wrong_names_and_shuffled_labels_trained_on(
    news_world: Path, tmp_path: Path
) -> None:
    boxes = news_world / "corpus" / BOXES
    make_box_errors(BoxErrorsConfig(source=boxes, out=tmp_path / "same.jsonl"))
    assert (tmp_path / "same.jsonl").read_bytes() == boxes.read_bytes()
    make_box_errors(BoxErrorsConfig(source=boxes, out=tmp_path / "wrong.jsonl", rate=1))
    shutil.copytree(news_world / "packed", tmp_path / "packed")
    pack(
        load(
            PackConfig,
            ROOT / "configs/pack/synthetic.yaml",
            [
                *(f"corpus.root={news_world}/corpus", f"corpus.boxes={tmp_path}/wrong.jsonl", "stage=boxes"),
                *(f"out={tmp_path}/packed", "samples_per_shard=25"),
            ],
        )
    )
    split, before = PackedSplit(tmp_path / "packed/train"), PackedSplit(news_world / "packed/train")
    # a jittered box stays in the photo, so that none is lost
    assert split.index["boxes"].tolist() == before.index["boxes"].tolist()
    assert split.read_json(0)["boxes"] != before.read_json(0)["boxes"]

    names = tmp_path / "nonsense.tsv"
    make_entity_errors(
        EntityErrorsConfig(source=before.folder / "entities.tsv", out=names, how="nonsense", rate=0.5)
    )
    label(
        load(
            LabelRunConfig,
            ROOT / "configs/label/tiny.yaml",
            [
                *(f"teacher={news_world}/teacher/model", "temperature=0.003", f"splits=[{split.folder}]"),
                f"bank.vocabulary.entities={names}",
            ],
        )
    )
    old = choose_labels(split.folder, None)
    entities = read_label_manifest(old).entities
    shuffle_labels(LabelErrorsConfig(split=split.folder, rate=0.3, seed=1))
    new = choose_labels(split.folder, None)
    assert new != old and not old.exists()
    manifest = read_label_manifest(new)
    assert manifest.entities == entities and "objects_agreement_top1" not in manifest.statistics
    assert load_banks(new, corpus=split.manifest.fingerprint).entities_KD.shape[0] == len(entities)
    assert not verify([split.folder]).findings

    run = tmp_path / "run"
    config = tiny_config(news_world, f"data.train={split.folder}", f"out={run}", "steps=2")
    assert run_ranks(train_on_rank, 1, config, timeout=120) == [True]
    assert json.loads((run / "description/data.json").read_text())[0]["labels"] == new.name
