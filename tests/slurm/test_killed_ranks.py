"""`sbatch slurm/pretrain.sh` on a real Slurm while its ranks are killed: apart, it takes as long as all the rest."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from promptmeup.training.checkpoint import complete
from promptmeup.training.signals import STOP_FILE
from tests.slurm.conftest import Cluster, steps_of, until
from tests.slurm.runs import assert_same_curve, rank_pids, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
            seconds=200,
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
