"""Settings for every test: no model hub, no telemetry, one torch thread (forked ranks would deadlock)."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("PROMPTMEUP_TEST_GPUS", ""))
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
if not os.environ["CUDA_VISIBLE_DEVICES"]:
    # Triton decides when it is imported: kernels run in its interpreter, on a CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

torch.set_num_threads(1)

_MINUTES = (
    "tests/slurm/test_pretrain.py",
    "tests/slurm/test_killed_ranks.py",
    "tests/integration/test_study.py",
    "tests/integration/test_study_chain.py",
    "tests/slurm/test_other_scripts.py",
    "tests/integration/test_failures.py",
)
"""files that take minutes, most of them waiting: begun first, so that none is left at the end with one worker busy"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for several workers, the longest first."""
    rank = {file: place for place, file in enumerate(_MINUTES)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))
