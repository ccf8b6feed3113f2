"""`sbatch slurm/pretrain.sh` on a real Slurm, through all that ends a job before its run."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from promptmeup.tracking import journal
from promptmeup.training.checkpoint import complete
from promptmeup.training.signals import STOP_FILE
from tests.integration.conftest import TINY, tiny_config, train_on_rank
from tests.integration.test_training import curve
from tests.slurm.conftest import Cluster, steps_of, until
from tests.support.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# a rate that does not depend on the number of steps, so that a run may end anywhere
COMMON = (
    "loss.weights.object_entity=0",
    "loss.weights.image_relation=0",
    "optim.decay=none",
    "optim.warmup=0",
    "global_batch=12",
    "tracking.console_seconds=1",
)


def settings(world: Path, run: Path, *overrides: str) -> list[str]:
    data = [f"data.train={world}/packed/train", f"data.val={world}/packed/val"]
    return [*TINY, *data, f"out={run}", *COMMON, *overrides]


def assert_same_curve(world: Path, run: Path, *, ranks: int, tolerance: float = 1e-6) -> None:
    """Compare every step of `run` with a run of the same length that nothing interrupted."""
    found = curve(run)
    last = max(found)
    assert sorted(found) == list(range(1, last + 1)), "a step is missing"
    whole = run.with_name(f"{run.name}-whole")
    config = tiny_config(world, f"out={whole}", *COMMON, f"steps={last}")
    assert run_ranks(train_on_rank, ranks, config, timeout=300) == [True] * ranks
    expected = curve(whole)
    for step, values in expected.items():
        for name in ("loss", "loss/image_text", "loss/matching"):
            assert found[step][name] == pytest.approx(values[name], rel=tolerance, abs=tolerance), (
                step,
                name,
            )


def rank_pids(run: Path) -> list[int]:
    """Return the processes of the ranks of `run`, without their workers (forked, so of the same name) and launchers."""
    found = subprocess.run(
        ["pgrep", "-f", f"python -u launch/pretrain.py .*out={run} "],
        capture_output=True,
        text=True,
        check=False,
    )
    parents = {}
    for pid in map(int, found.stdout.split()):
        try:
            name, status = (Path(f"/proc/{pid}") / file for file in ("comm", "status"))
            if name.read_text().startswith("python"):
                parents[pid] = int(re.search(r"PPid:\t(\d+)", status.read_text())[1])  # type: ignore[index]
        except OSError:
            continue  # it has just ended
    return [pid for pid, parent in parents.items() if parent not in parents]


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
    until(lambda: cluster.fact(job, "JobState") == "PENDING", seconds=100, log=log)
    cluster.tool("scancel", job)
    job = submit(2)
    until(lambda: "moved after" in log.read_text(), seconds=200, log=log)
    resumed = steps_of(run)
    until(lambda: steps_of(run) > resumed + 3, seconds=100, log=log)
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
    until(lambda: cluster.fact(job, "Restarts") == "1", seconds=100, log=log)
    before = steps_of(run)
    until(lambda: steps_of(run) > before + 3, seconds=200, log=log)
    assert cluster.fact(job, "BatchHost") != host
    (run / STOP_FILE).touch()
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert_same_curve(news_world, run, ranks=2)


def test_one_rank_killed_at_ten_random_moments(cluster: Cluster, news_world: Path, tmp_path: Path) -> None:
    """Each time the job gained a checkpoint its script queues it again, and nothing but steps since then is lost."""
    run, log = tmp_path / "run", tmp_path / "job.out"
    moments = random.Random(0)
    job = cluster.sbatch(
        *("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=60"),
        *("slurm/pretrain.sh", "configs/pretrain/tiny.yaml"),
        *settings(news_world, run, "steps=1000000", "save_every=3", "data.workers=1"),
        log=log,
        # the doctor has looked in the other tests: eleven starts more would cost minutes
        variables={"PROMPTMEUP_PROGRESS_FILE": f"{tmp_path}/progress", "DOCTOR": "off"},
    )
    for kill in range(10):
        saved = complete(run)[-1:]
        until(lambda saved=saved: complete(run)[-1:] > saved, seconds=200, log=log)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 2))
        pids = rank_pids(run)
        assert len(pids) == 2, (kill, pids, log.read_text())
        os.kill(moments.choice(pids), signal.SIGKILL)
        until(
            lambda kill=kill: cluster.fact(job, "Restarts") == str(kill + 1),  # type: ignore[misc]
            seconds=100,
            log=log,
        )
        assert "ended without a word: killed" in (run / "crash.json").read_text()
    before = steps_of(run)
    until(lambda: steps_of(run) > before, seconds=200, log=log)
    (run / STOP_FILE).touch()
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert len(list(run.glob("crash-*.json"))) == 10
    assert not rank_pids(run), "processes left behind"
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
    until(lambda: rank_pids(run), seconds=60, log=log)
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
    until(lambda: steps_of(run) > 1, seconds=100, log=log)
    cluster.tool("scancel", "--signal=USR2", capped)
    assert cluster.wait(capped) == "FAILED"
    assert "not queued again: it was 0 times already (PROMPTMEUP_MAX_REQUEUES)" in log.read_text()
    assert complete(run), "saved all the same"

    wrong = cluster.sbatch(*options, *script, "optim.rate=1", log=log, variables=variables)
    assert cluster.wait(wrong) == "FAILED"
    assert "not queued again: the configuration is wrong" in log.read_text()
