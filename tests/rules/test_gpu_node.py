"""A GPU node without the internet has few libraries: all modules but those exempt here are imported and train there."""

import configparser
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from promptmeup.models.weights import find
from tests.support.gpu_node import NODE, canonical, with_dependencies
from tests.unit.models.support import MINILM

ROOT = Path(__file__).parents[2]
EXEMPT = {
    # fine-tuning is accelerate's
    "promptmeup.distributed.accelerated": "accelerate",
    "promptmeup.extraction.dry_run": "accelerate",
    "promptmeup.extraction.finetune": "accelerate",
    "promptmeup.extraction.seed_run": "accelerate",
    # and studies fine-tune
    **{
        f"promptmeup.study.{name}": "accelerate"
        for name in ("collect", "commands", "job", "mlflow_cells", "plan", "study", "workers")
    },
}
"""modules that need a library which such a node lacks, and the library"""
REAL_SHARDS = {"orjson"}


@pytest.fixture(scope="module")
def seen() -> Any:
    tokenizer = find(MINILM, key="tokenizer")  # a folder, since its package is hidden too
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.gpu_node", str(tokenizer)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_modules_are_imported_but_those_that_are_exempt(seen: Any) -> None:
    assert seen["missing"] == EXEMPT, "exempt is what fails, each for its own library, and nothing else"


def test_a_step_is_trained(seen: Any) -> None:
    assert set(seen["step"]) >= {
        f"loss/{name}" for name in ("image_text", "object_entity", "image_relation", "matching", "total")
    }
    assert all(math.isfinite(value) for value in seen["step"].values())


def test_a_run_that_wants_mlflow_says_the_ways_out(seen: Any) -> None:
    for part in ("sqlite:///", "MLflow is not installed", "tracking.uri=null", "pip install mlflow"):
        assert part in seen["mlflow"]


def test_requirements_are_the_packages_own_and_no_more() -> None:
    lines = (ROOT / "requirements-gpu-bench.txt").read_text(encoding="utf-8").splitlines()
    node = {canonical(r.name): r for line in lines if (r := _requirement(line))}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    ours = setup["options"]["install_requires"].splitlines()
    package = {canonical(r.name): r for line in ours if (r := _requirement(line))}
    assert node.items() <= package.items(), "ranges are setup.cfg's"
    assert {canonical(name) for name in NODE} | REAL_SHARDS <= node.keys()
    assert node.keys() - REAL_SHARDS <= with_dependencies(NODE)


def _requirement(line: str) -> Requirement | None:
    text = line.partition(" #")[0].strip()
    return Requirement(text) if text and not text.startswith("#") else None
