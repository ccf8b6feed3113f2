"""The check-up on real ranks: sound, a rank that is missing, what only one node sees, and the command itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptmeup.distributed.world import World, barrier, leave
from promptmeup.doctor.checkup import Settings, check_up
from promptmeup.training.settings import PretrainConfig
from tests.integration.conftest import TINY, tiny_config
from tests.integration.test_launchers import free_port
from tests.support.ranks import run_ranks
from tests.support.real_data import ROOT


def _check(world: World, settings: Settings, fault: str) -> tuple[str, dict[str, Any]] | None:
    """Body of a rank, each on a node of its own; rank 1 is the one that `fault` befalls."""
    barrier(world)
    leave()  # the helper joined
    socket.gethostname = lambda: f"node{world.rank + 1}"
    if world.rank == 1:
        if fault == "missing":
            return None
        _befall(fault)
    found = check_up(settings)
    assert not found.hangs
    return (str(found.report), found.report.as_json()) if found.report else None


def _befall(fault: str) -> None:
    from promptmeup.distributed import roll_call
    from promptmeup.doctor import corpora, disk, machine

    if fault == "versions":
        before = machine.versions
        machine.versions = lambda: before() | {"torch": "2.0.0"}
    elif fault == "clock":
        clock = roll_call.time.time
        roll_call.time.time = lambda: clock() + 60
    elif fault == "shard":
        right = corpora.file_sha256
        corpora.file_sha256 = lambda path: "0" * 64 if path.name.startswith("shard") else right(path)
    elif fault == "run folder":
        disk.SEEN_SECONDS = 0.2
        disk.os.listdir = lambda _: []


def doctor(config: PretrainConfig, fault: str = "", **more: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the lines that rank 0 of 2 printed, and the checks by name."""
    settings = Settings(config, cpu_is_meant=True, **more)
    text, values = run_ranks(_check, 2, settings, fault)[0]
    return text, {check["name"]: check for check in values["checks"]}


def test_two_ranks_that_may_start(news_world: Path, tmp_path: Path) -> None:
    config = tiny_config(news_world, f"out={tmp_path}/run", "steps=4", "data.workers=0")
    text, checks = doctor(config, full=True)
    assert "0 failed: nothing stands in the way" in text
    assert checks["ranks"]["text"].startswith("2 on node1, node2 met at 127.0.0.1:")
    assert "all-reduce" in checks["exchanges"]["text"] and "sums are right" in checks["exchanges"]["text"]
    assert "SHA-256 of 3 compared" in checks["data.train"]["text"]
    assert "entity prompts" in checks["soft labels"]["text"]
    assert checks["checkpoint"]["text"] == "none: the run starts afresh"
    assert not (tmp_path / "run").exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "name", "status", "message"),
    [
        ("missing", "ranks", "failed", "rank 1 of 2 did not come to 127.0.0.1:"),
        ("missing", "exchanges", "failed", "not measured: rank 1 missing; see ranks"),
        ("versions", "versions", "failed", "2.0.0 on node2 (rank 1)"),
        ("clock", "clocks", "warning", "node2 (rank 1): 60 s ahead of node1"),
        ("shard", "data.train", "failed", "node2 (rank 1): "),
        ("run folder", "run folder", "failed", "node2 (rank 1): does not see what rank 0 wrote"),
    ],
)
def test_what_befalls_one_rank_is_named(
    news_world: Path, tmp_path: Path, fault: str, name: str, status: str, message: str
) -> None:
    config = tiny_config(news_world, f"out={tmp_path}/run", "steps=4", "data.val=null")
    _, checks = doctor(config, fault, timeout=2.0 if fault == "missing" else 30.0)
    assert checks[name]["status"] == status and message in checks[name]["text"]
    wrong = {check["name"] for check in checks.values() if check["status"] == "failed"}
    assert wrong <= {name, "ranks", "exchanges"}


@pytest.mark.timeout(200)
def test_as_srun_starts_it_as_json(news_world: Path, tmp_path: Path) -> None:
    settings = [
        *TINY,
        f"data.train={news_world}/packed/train",
        "data.val=null",
        f"out={tmp_path}/run",
        "steps=4",
    ]
    command = [
        sys.executable,
        "launch/doctor.py",
        "--config",
        "configs/pretrain/tiny.yaml",
        "--json",
        *settings,
    ]
    common = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    common |= {"SLURM_STEP_NUM_TASKS": "2", "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=150) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert outputs[1][0] == ""  # rank 0 alone speaks
    values = json.loads(outputs[0][0])
    assert values["status"] in ("ok", "warning") and values["ranks"] == 2
