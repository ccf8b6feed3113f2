"""Pre-training runs of the Slurm tests: their settings, their ranks, and the curve that they should have had."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import TINY, tiny_config, train_on_rank
from tests.integration.test_training import curve
from tests.support.ranks import run_ranks

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
