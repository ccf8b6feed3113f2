"""`sbatch slurm/label.sh` and `slurm/finetune.sh`: the shorter jobs, on a real Slurm."""

import json
import shutil
from pathlib import Path

import pytest

from promptmeup.training.inputs import choose_labels
from tests.integration.conftest import tiny_config, train_on_rank
from tests.slurm.conftest import Cluster
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OPTIONS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30")


def test_label(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """Two ranks on two nodes write the files that one process writes."""
    shutil.copytree(news_world / "packed", tmp_path / "packed", ignore=shutil.ignore_patterns("labels"))
    log = tmp_path / "job.out"
    settings = [
        f"teacher={news_world}/teacher/model",
        f"splits=[{tmp_path}/packed/train]",
        "temperature=0.003",
    ]
    job = cluster.sbatch(*OPTIONS, "slurm/label.sh", "configs/label/tiny.yaml", *settings, log=log)
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    expected, found = (
        choose_labels(news_world / "packed/train", None),
        choose_labels(tmp_path / "packed/train", None),
    )
    assert found.name == expected.name
    files = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == files
    for name in files:
        if name.endswith(".npy"):
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_finetune(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    log, data, student = tmp_path / "job.out", tmp_path / "data", tmp_path / "student"
    assert run_ranks(train_on_rank, 1, tiny_config(news_world, f"out={student}", "steps=1"), timeout=120) == [
        True
    ]
    data.mkdir()
    sentence = {
        "words": ["Keller", "speaks", "in", "Leeds"],
        "tags": ["B-PER", "O", "O", "B-LOC"],
        "image": None,
    }
    for split in ("train", "val", "test"):
        lines = [json.dumps({**sentence, "id": f"{split}/{i}"}) for i in range(8)]
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    settings = [f"out={tmp_path}/run", f"model={student}", f"data.root={data}"]
    settings += ["data.text_only=true", "epochs=1", "batch=4", "tracking.uri=null", "seeds=[1]", "patience=0"]
    variables = {"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress"}
    job = cluster.sbatch(
        *OPTIONS, "slurm/finetune.sh", "configs/finetune/jsonl.yaml", *settings, log=log, variables=variables
    )
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["train_sentences"] == 8 and "test" in result["splits"]
