"""What this process finds on its node: cores, shared memory, open files, versions; and how nodes differ."""

import os
import platform
import resource
from collections.abc import Mapping
from pathlib import Path

import torch

from promptmeup.data.settings import DataConfig
from promptmeup.doctor.finding import GB, Finding, by_host, failed, ok, together, warning, where
from promptmeup.progress import spoken
from promptmeup.tracking.provenance import versions

CLOCKS_DIFFER = 5.0
"""seconds"""
SHARED_MEMORY = Path("/dev/shm")
OPEN_FILES = 512
"""libraries, sockets, and what a reader keeps open (`data.reader`)"""
FILES_A_BATCH = 16
"""tensors of a batch on their way from a worker: each is an open file"""
PRINTED = ("promptmeup", "torch", "deepspeed", "transformers", "mlflow")


def cores() -> Finding:
    """Say which cores this process may use; `cores_of_nodes` judges."""
    own = sorted(os.sched_getaffinity(0))
    return ok("", cores=own, omp=os.environ.get("OMP_NUM_THREADS"))


def cores_of_nodes(
    by_rank: Mapping[int, Finding], hosts: Mapping[int, str], data: DataConfig | None
) -> Finding:
    """Compare each node's cores with the processes that its ranks will have."""
    problems: dict[str, list[str]] = {}
    shapes, nodes = set(), {}
    workers = data.workers if data else 0
    for host, ranks in by_host(hosts).items():
        own = [by_rank[rank].facts for rank in ranks if rank in by_rank]
        if not own:
            continue
        number = len({core for facts in own for core in facts["cores"]})
        nodes[host] = {"cores": number, "ranks": len(own), "processes": len(own) * (1 + workers)}
        shapes.add((number, len(own)))
        for problem in (_too_few(number, len(own), workers), _threads(number, len(own), own[0]["omp"])):
            if problem:
                problems.setdefault(problem, []).append(host)
    if problems:
        texts = [f"{', '.join(found)}: {problem}" for problem, found in problems.items()]
        more = f" | and {len(texts) - 2} more" if len(texts) > 2 else ""
        return warning(" | ".join(texts[:2]) + more, nodes=nodes)
    each = [
        f"{number} core{'s' if number > 1 else ''} for {ranks} rank{'s' if ranks > 1 else ''}"
        for number, ranks in sorted(shapes)
    ]
    return ok(f"{', '.join(each)}{f', data.workers = {workers}' if data else ''}", nodes=nodes)


def _too_few(number: int, ranks: int, workers: int) -> str:
    if number >= ranks * (1 + workers):
        return ""
    text = f"{ranks} ranks of 1 + {workers} processes on {number} cores; "
    if workers == 0:
        return f"{text}start fewer ranks there, or ask for more cores (sbatch --cpus-per-task)"
    text += f"set data.workers={max(0, number // ranks - 1)}"
    if "SLURM_JOB_ID" not in os.environ:
        return text
    return (
        f"{text}, or ask for --cpus-per-task={1 + workers} and export SRUN_CPUS_PER_TASK, since srun does not take it "
        "over (slurm/env.sh)"
    )


def _threads(number: int, ranks: int, threads: str | None) -> str:
    if not threads or not threads.isdecimal() or int(threads) * ranks <= number or int(threads) == 1:
        return ""
    return (
        f"OMP_NUM_THREADS = {threads} in each of {ranks} ranks on {number} cores: they will fight; unset "
        "it, or set it to "
        f"{max(1, number // ranks)}"
    )


def shared_memory(data: DataConfig | None, *, rows: int, ranks: int) -> Finding:
    """Compare /dev/shm with the batches that data workers keep there.

    Args:
        rows: pairs of a rank and step.
        ranks: of this node.
    """
    stat = os.statvfs(SHARED_MEMORY)
    free = stat.f_bavail * stat.f_frsize
    if data is None or data.workers == 0:
        return ok(f"{spoken(free)} free in {SHARED_MEMORY}", free_gb=round(free / GB, 2))
    # a photo is uint8 there; boxes, tokens and labels are small beside it. One more batch is being made.
    batch = rows * 3 * data.image.size**2
    need = batch * data.workers * (data.prefetch + 1) * ranks
    facts = {"free_gb": round(free / GB, 2), "need_gb": round(need / GB, 2)}
    text = (
        f"{spoken(free)} free in {SHARED_MEMORY}; batches under way take {spoken(need)} ({ranks} ranks x "
        f"{data.workers} workers x {data.prefetch + 1} batches of {spoken(batch)})"
    )
    if free < need:
        return failed(
            f"{text}: workers would die of a bus error; lower data.prefetch or data.workers, or give the "
            "container more "
            "(--shm-size)",
            **facts,
        )
    return ok(text, **facts)


def open_files(data: DataConfig | None) -> Finding:
    """Compare the limit of open files with what readers and batches under way need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = OPEN_FILES + (data.workers * (data.prefetch + 1) * FILES_A_BATCH if data else 0)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < need:
        return warning(
            f"at most {soft} open files, a rank may need {need}: run ulimit -n {need} first (the hard "
            f"limit is {hard}), or "
            "lower data.workers",
            soft=soft,
            need=need,
        )
    return ok(f"at most {limit}, a rank needs up to {need}", soft=soft, need=need)


def software() -> Finding:
    """Say what is installed; `same_software` compares."""
    found = {"python": platform.python_version(), **versions(), "cuda": torch.version.cuda}
    if torch.version.cuda:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    shown = [f"{name} {found[name]}" for name in ("python", *PRINTED, "cuda", "nccl") if found.get(name)]
    return ok(", ".join(shown), **found)


def same_software(by_rank: Mapping[int, Finding], hosts: Mapping[int, str]) -> Finding:
    """Compare the ranks' versions: two environments are one run's strangest errors."""
    first = next(iter(by_rank.values()))
    names = {name: None for found in by_rank.values() for name in found.facts}
    differing = []
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, found in by_rank.items():
            ranks.setdefault(str(found.facts.get(name)), []).append(rank)
        if len(ranks) > 1:
            each = [f"{version} on {where(group, hosts)}" for version, group in ranks.items()]
            differing.append(f"{name} is {', '.join(each)}")
    if not differing or first.status == "failed":
        return together(by_rank, hosts)
    return failed(
        f"{'; '.join(differing[:3])}: use one environment for all nodes, on a shared file system or in an image",
        by_rank={str(rank): found.facts for rank, found in by_rank.items()},
    )


def clocks(by_rank: Mapping[int, Finding], hosts: Mapping[int, str]) -> Finding:
    """Compare the nodes' clocks; a finding's fact `seconds` is its clock minus that of rank 0's node."""
    offsets = {rank: float(found.facts["seconds"]) for rank, found in by_rank.items()}
    off = {rank: seconds for rank, seconds in offsets.items() if abs(seconds) > CLOCKS_DIFFER}
    facts = {"seconds": {str(rank): round(seconds, 2) for rank, seconds in offsets.items()}}
    if not off:
        spread = max(offsets.values()) - min(offsets.values())
        return ok(f"within {max(spread, 0.1):.1f} s of each other", **facts)
    farthest = max(off.values(), key=abs)
    return warning(
        f"{where(list(off), hosts)}: {abs(farthest):.0f} s {'behind' if farthest < 0 else 'ahead of'} "
        f"{hosts[0]}: times in "
        "journal and files will mislead; have the nodes' time service (chrony, ntpd) mended",
        **facts,
    )
