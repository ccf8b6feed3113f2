"""GPUs that are there, taken, shared, hidden or promised; no GPU is needed: what torch says is put in its place."""

from types import SimpleNamespace

import pytest
import torch

from promptmeup.doctor import devices
from promptmeup.doctor.finding import Finding, ok

VARIABLES = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_STEP_NUM_TASKS")
HOSTS = {0: "node1", 1: "node1", 2: "node2", 3: "node2"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "_driver", lambda: "580.1")


def test_a_cpu_is_fine(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "absent")
    assert devices.device(0, cpu_is_meant=False).text == "CPU"


def test_promised_gpus_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    found = devices.device(0, cpu_is_meant=False)
    assert found.status == "failed"
    assert "SLURM_JOB_GPUS = 0,1, but torch sees no GPU" in found.text
    assert "nvidia-smi" in found.text and "DS_ACCELERATOR=cpu trains on the CPU" in found.text
    assert devices.device(0, cpu_is_meant=True).status == "ok"


def test_deepspeeds_numbers_promise_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert devices.device(0, cpu_is_meant=False).status == "failed"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("CROSS_RANK", "0")
    assert devices.device(0, cpu_is_meant=False).status == "ok"


def test_a_driver_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1  Tue\n")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
    found = devices.device(0, cpu_is_meant=False)
    assert found.status == "warning" and "--gpus-per-node" in found.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.device(0, cpu_is_meant=False).status == "ok"


def test_the_drivers_version(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.undo()
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Tue\n")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
    assert devices._driver() == "580.65.06"


@pytest.mark.parametrize(("free", "status"), [(79e9, "ok"), (60e9, "warning")])
def test_a_gpu_and_who_uses_it(monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", uuid="u0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), int(80e9)))
    found = devices._gpu(torch.device("cpu"), {})
    assert found.status == status
    assert found.facts["name"] == "NVIDIA H100" and found.facts["free_gb"] == free / 1e9
    if status == "warning":
        assert "another process uses 20.0 GB" in found.text and "nvidia-smi" in found.text


def _seen(rank: int, **facts: object) -> Finding:
    return ok(f"GPU {rank}", **({"name": "H100", "uuid": f"u{rank}", "free_gb": 79.0 - rank} | facts))


def test_all_have_one() -> None:
    found = devices.devices({rank: _seen(rank) for rank in HOSTS}, HOSTS)
    assert (found.status, found.text) == ("ok", "4 x H100; least free memory 76.0 GB")


def test_two_ranks_on_one_gpu() -> None:
    by_rank = {rank: _seen(rank, uuid="u0" if rank < 2 else f"u{rank}") for rank in HOSTS}
    found = devices.devices(by_rank, HOSTS)
    assert found.status == "failed"
    assert "ranks 0 and 1 have the same GPU of node1: start one process for each GPU" in found.text
    # the same number on another node is another GPU
    twins = {0: _seen(0, uuid="a"), 2: _seen(2, uuid="a")}
    assert devices.devices(twins, HOSTS).status == "ok"


def test_gpus_hidden_from_each_other() -> None:
    by_rank = {rank: _seen(rank, visible=str(rank % 2), in_slurm_step=True) for rank in HOSTS}
    found = devices.devices(by_rank, HOSTS)
    assert found.status == "warning"
    assert "node1 (ranks 0, 1) and node2 (ranks 2, 3): each task sees one GPU alone" in found.text
    assert "without --gpus-per-task" in found.text
    by_rank = {rank: _seen(rank, visible="0,1", in_slurm_step=True) for rank in HOSTS}
    assert devices.devices(by_rank, HOSTS).status == "ok"
