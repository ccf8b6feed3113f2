"""`sbatch slurm/label.sh`, `slurm/finetune.sh` and `slurm/study.sh`: the shorter jobs, on a real Slurm."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from promptmeup.study.plan import make_plan
from promptmeup.training.inputs import choose_labels
from tests.integration.conftest import tiny_config, train_on_rank
from tests.integration.test_study import with_worlds
from tests.slurm.conftest import Cluster, until
from tests.support.ranks import run_ranks
from tests.support.study_chain import configured, runs

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


STUDY = ("--array=0-1", "--ntasks=1", "--cpus-per-task=1", "--time=30", "--spread-job")


def test_study(cluster: Cluster, tmp_path: Path) -> None:
    """Two tasks share the stages, run each once, and both end when the study is whole."""
    config = configured(tmp_path, "seeds=[1, 2, 3]", chain_of=with_worlds(tmp_path))
    log = tmp_path / "job-%a.out"
    job = cluster.sbatch(*STUDY, "slurm/study.sh", str(tmp_path / "study.yaml"), "seeds=[1, 2, 3]", log=log)
    logs = [tmp_path / f"job-{task}.out" for task in (0, 1)]
    for task, own in enumerate(logs):
        assert cluster.wait(f"{job}_{task}") == "COMPLETED", own.read_text()
    plan = make_plan(config)
    assert [runs(stage) for stage in plan.stages] == [1] * len(plan.stages)
    assert "6 of 6 cells are finished" in (config.out / "report.md").read_text()
    assert sum(own.read_text().count(" begins: ") for own in logs) == len(plan.stages)


def test_study_is_queued_again_after_usr2_and_not_after_a_failure(cluster: Cluster, tmp_path: Path) -> None:
    """Of an array the one task that was told: Slurm knows its last one by the number of the whole array, too."""
    slow = with_worlds(tmp_path)
    slow["stages"]["world"]["set"].append("num_train_images=10000")
    config = configured(tmp_path, "seeds=[1]", chain_of=slow)
    world = make_plan(config).stages[0]
    world.folder.parent.mkdir()
    held = world.beside("lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    script = ("slurm/study.sh", str(tmp_path / "study.yaml"))
    job = cluster.sbatch(*STUDY, *script, "seeds=[1]", log=tmp_path / "job-%a.out")
    other, log = (tmp_path / f"job-{task}.out" for task in (0, 1))

    def said() -> list[str]:
        return [own.read_text() if own.exists() else "" for own in (other, log)]

    until(lambda: all("waiting for" in own for own in said()), seconds=120, log=log)
    held.close()
    until(lambda: "world begins" in "".join(said()), seconds=120, log=log)
    assert cluster.fact(f"{job}_1", "JobId") == job
    cluster.tool("scancel", "--signal=USR2", f"{job}_1")
    until(lambda: "back to the queue" in log.read_text(), seconds=120, log=log)
    assert "stopped; the same command goes on" in log.read_text()
    for task, own in enumerate((other, log)):
        assert cluster.wait(f"{job}_{task}") == "COMPLETED", own.read_text()
        assert cluster.fact(f"{job}_{task}", "Restarts") == str(task)
    assert "2 of 2 cells are finished" in (config.out / "report.md").read_text()

    failing = ("seeds=[1]", "change={jitter: [source=no/such/file]}")
    log = tmp_path / "failing.out"
    job = cluster.sbatch("--array=0-0", *STUDY[1:], *script, *failing, log=log)
    assert cluster.wait(f"{job}_0") == "FAILED", log.read_text()
    assert "not queued again: exit code 1" in log.read_text() and "no/such/file" in log.read_text()
