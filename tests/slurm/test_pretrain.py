"""`sbatch slurm/pretrain.sh` on a real Slurm, through all that ends a job before its run."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from promptmeup.tracking import journal
from promptmeup.training.checkpoint import complete
from promptmeup.training.signals import STOP_FILE
from tests.slurm.conftest import Cluster, steps_of, until
from tests.slurm.runs import assert_same_curve, rank_pids, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_time_limit_and_a_restarted_controller(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """2 nodes of 2 tasks: USR2 ahead of the limit, requeued, resumed; slurmctld dies and comes back meanwhile."""
    run, log = tmp_path / "run", tmp_path / "job.out"
    script = ("slurm/pretrain.sh", "configs/pretrain/tiny.yaml")
    job = cluster.sbatch(
        *("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=3", "--signal=USR2@60"),
        *script,
        *settings(news_world, run, "steps=1000000"),
        log=log,
        variables={"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress"},
    )
    until(lambda: steps_of(run) > 2, seconds=200, log=log)
    folder = Path(cluster.environment["SLURM_CLUSTER_DIR"])
    os.kill(int((folder / "run/slurmctld.pid").read_text()), signal.SIGKILL)
    time.sleep(1)
    cluster.tool("exec", "head", "slurmctld", "-f", cluster.environment["SLURM_CONF"])
    until(lambda: "back to the queue" in log.read_text(), seconds=200, log=log)
    saved = int(complete(run)[-1].removeprefix("step-"))
    until(lambda: steps_of(run) > saved + 2, seconds=200, log=log)
    (run / STOP_FILE).touch()
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert cluster.fact(job, "Restarts") == "1"
    assert re.search(r"stopped after \d+ steps  by=SIGUSR2", log.read_text())
    assert "start 1 of job" in log.read_text() and "ended with 85" in log.read_text(), (
        "all ranks left by themselves"
    )
    events = [line["event"] for line in journal.read(run / "journal.jsonl")]
    assert events.count("start") == 1 and events.count("resume") == 1
    assert not (tmp_path / "progress").exists(), "a finished job leaves nothing behind"
    assert_same_curve(news_world, run, ranks=4)


def test_a_dead_node(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """Of 3 nodes one loses its power, and there is no spare: the same line with --nodes=2 goes on with 2 ranks."""
    run, log = tmp_path / "run", tmp_path / "job.out"

    def submit(nodes: int) -> str:
        return cluster.sbatch(
            *(f"--nodes={nodes}", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30"),
            *("slurm/pretrain.sh", "configs/pretrain/tiny.yaml"),
            *settings(news_world, run, "steps=1000000", "save_every=5"),
            log=log,
            variables={"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress"},
        )

    job = submit(3)
    until(lambda: len(complete(run)) > 0, seconds=200, log=log)
    cluster.tool("kill", "node2")
    until(lambda: cluster.fact(job, "JobState") == "PENDING", seconds=200, log=log)
    cluster.tool("scancel", job)
    job = submit(2)
    until(lambda: "moved after" in log.read_text(), seconds=200, log=log)
    resumed = steps_of(run)
    until(lambda: steps_of(run) > resumed + 3, seconds=200, log=log)
    (run / STOP_FILE).touch()
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert "checkpoint=ZeRO 1 on 3 ranks, float32  run=ZeRO 1 on 2 ranks, float32" in log.read_text()
    # sums over 2 ranks are rounded in another order than over 3
    assert_same_curve(news_world, run, ranks=2, tolerance=1e-4)


def test_a_spare_node(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """The batch host itself dies, of a job on 2 of 3 nodes: it goes on on the spare one."""
    run, log = tmp_path / "run", tmp_path / "job.out"
    job = cluster.sbatch(
        *("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30"),
        *("slurm/pretrain.sh", "configs/pretrain/tiny.yaml"),
        *settings(news_world, run, "steps=1000000", "save_every=5"),
        log=log,
        variables={"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress"},
    )
    until(lambda: len(complete(run)) > 0, seconds=200, log=log)
    host = cluster.fact(job, "BatchHost")
    cluster.tool("kill", host)
    until(lambda: cluster.fact(job, "Restarts") == "1", seconds=200, log=log)
    before = steps_of(run)
    until(lambda: steps_of(run) > before + 3, seconds=200, log=log)
    assert cluster.fact(job, "BatchHost") != host
    (run / STOP_FILE).touch()
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert_same_curve(news_world, run, ranks=2)


def test_a_loop_without_progress_ends(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """The signal of the time limit comes before there is anything to save: the next start would be no better."""
    run, log = tmp_path / "run", tmp_path / "job.out"
    variables = {"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress"}
    options = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
    script = ("slurm/pretrain.sh", "configs/pretrain/tiny.yaml")
    job = cluster.sbatch(
        *options, *script, *settings(news_world, run, "steps=9"), log=log, variables=variables
    )
    until(lambda: rank_pids(run), seconds=200, log=log)
    cluster.tool("scancel", "--signal=USR2", job)
    assert cluster.wait(job) == "FAILED"
    assert "not queued again: no checkpoint was gained since the start (step none)" in log.read_text()
    assert cluster.fact(job, "Restarts") == "0"

    capped = cluster.sbatch(
        *options,
        *script,
        *settings(news_world, run, "steps=1000000"),
        log=log,
        variables={**variables, "PROMPTMEUP_MAX_REQUEUES": "0"},
    )
    until(lambda: steps_of(run) > 1, seconds=200, log=log)
    cluster.tool("scancel", "--signal=USR2", capped)
    assert cluster.wait(capped) == "FAILED"
    assert "not queued again: it was 0 times already (PROMPTMEUP_MAX_REQUEUES)" in log.read_text()
    assert complete(run), "saved all the same"

    wrong = cluster.sbatch(*options, *script, "optim.rate=1", log=log, variables=variables)
    assert cluster.wait(wrong) == "FAILED"
    assert "not queued again: the configuration is wrong" in log.read_text()
