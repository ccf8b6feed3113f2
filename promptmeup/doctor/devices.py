"""The device that each rank computes on, and how the ranks' devices stand to each other."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from promptmeup.distributed.world import choose_device
from promptmeup.doctor.finding import GB, Finding, by_host, failed, ok, together, warning, where
from promptmeup.doctor.job import launcher_of

TAKEN_GB = 2.0
"""of a GPU's memory that may be in use before a run starts; this process's own CUDA context is half a gigabyte"""
_DRIVER = Path("/proc/driver/nvidia/version")


def device(local_rank: int, *, cpu_is_meant: bool) -> Finding:
    """Look at the device that `distributed.world` chooses for this rank, and compute something on it."""
    chosen = choose_device(local_rank, num_devices=torch.cuda.device_count())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    facts = {
        "device": str(chosen),
        "visible": visible,
        "in_slurm_step": "SLURM_STEP_NUM_TASKS" in os.environ,
        "torch_cuda": torch.version.cuda,
    }
    if chosen.type == "cpu":
        # the deepspeed launcher numbers its workers there, GPUs or not
        names = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"]
        if launcher_of(os.environ) != "deepspeed":
            names.append("CUDA_VISIBLE_DEVICES")
        promised = [name for name in names if os.environ.get(name)]
        built = (
            f"torch {torch.__version__} is built for "
            f"{f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"
        )
        if promised and not cpu_is_meant:
            return failed(
                f"{promised[0]} = {os.environ[promised[0]]}, but torch sees no GPU ({built}; driver: {_driver()}): see "
                "whether nvidia-smi shows it, and install a torch for its driver; DS_ACCELERATOR=cpu trains on the CPU",
                **facts,
            )
        if _DRIVER.exists() and visible is None and not cpu_is_meant:
            return warning(
                f"CPU, though this node has an NVIDIA driver ({_driver()}); {built}: under Slurm ask for GPUs "
                "(--gpus-per-node), else see nvidia-smi; DS_ACCELERATOR=cpu if the CPU is meant",
                **facts,
            )
        return ok("CPU", **facts)
    return _gpu(chosen, facts)


def _gpu(chosen: torch.device, facts: dict[str, Any]) -> Finding:
    properties = torch.cuda.get_device_properties(chosen)
    # fails where torch has no kernels for this generation of GPUs, or another process holds it exclusively
    assert float(torch.ones(8, device=chosen).sum()) == 8
    free, total = torch.cuda.mem_get_info(chosen)
    facts = facts | {
        "name": properties.name,
        "uuid": str(getattr(properties, "uuid", "")),
        "free_gb": round(free / GB, 2),
        "total_gb": round(total / GB, 2),
        "driver": _driver(),
    }
    text = f"{properties.name}, {free / GB:.1f} of {total / GB:.1f} GB free"
    if (total - free) / GB > TAKEN_GB:
        return warning(
            f"{text}: another process uses {(total - free) / GB:.1f} GB of it; find it with nvidia-smi, "
            "end it, or exclude "
            "the node (sbatch --exclude)",
            **facts,
        )
    return ok(text, **facts)


def _driver() -> str:
    try:
        first = _DRIVER.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return "none"
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), first)


def devices(by_rank: Mapping[int, Finding], hosts: Mapping[int, str]) -> Finding:
    """Join the ranks' devices: two ranks on one GPU, and GPUs that are hidden from each other."""
    found = together(by_rank, hosts)
    if found.status == "failed":
        return found
    seen: dict[tuple[str, str], int] = {}
    for rank, one in by_rank.items():
        uuid = one.facts.get("uuid")
        first = seen.setdefault((hosts[rank], uuid), rank) if uuid else rank
        if first != rank:
            text = (
                f"ranks {first} and {rank} have the same GPU of {hosts[rank]}: start one process for each GPU"
            )
            return replace(found, status="failed", text=text)
    alone = [
        rank
        for ranks in by_host(hosts).values()
        if len(ranks) > 1
        for rank in ranks
        if rank in by_rank and _is_isolated(by_rank[rank])
    ]
    if alone and found.status == "ok":
        text = (
            f"{where(alone, hosts)}: each task sees one GPU alone, so the GPUs of a node cannot reach "
            "each other's memory; "
            "use --gpus-per-node=N --ntasks-per-node=N without --gpus-per-task"
        )
        return replace(found, status="warning", text=text)
    if found.status == "ok" and len(by_rank) > 1:
        names: dict[str, int] = {}
        for one in by_rank.values():
            name = str(one.facts.get("name") or one.text)
            names[name] = names.get(name, 0) + 1
        free = [one.facts["free_gb"] for one in by_rank.values() if "free_gb" in one.facts]
        text = ", ".join(f"{number} x {name}" for name, number in names.items())
        text += f"; least free memory {min(free):.1f} GB" if free else ""
        return replace(found, text=text)
    return found


def _is_isolated(found: Finding) -> bool:
    """One visible device in a Slurm job that gave the tasks of this node more than one."""
    visible = found.facts.get("visible") or ""
    return len(visible.split(",")) == 1 and visible != "" and bool(found.facts.get("in_slurm_step"))
