"""Cores, shared memory, open files, versions and clocks: enough, too little, and who differs."""

import os
import resource
from types import SimpleNamespace

import pytest

from promptmeup.data.settings import DataConfig
from promptmeup.data.transforms import ImageConfig
from promptmeup.doctor import machine
from promptmeup.doctor.finding import Finding, ok

HOSTS = {0: "node1", 1: "node1", 2: "node2", 3: "node2"}


def data(workers: int = 2, **more: int) -> DataConfig:
    return DataConfig(train="packed", workers=workers, image=ImageConfig(size=224), **more)


def _cores(number: int, *, omp: str | None = None) -> dict[int, Finding]:
    return {rank: ok("", cores=list(range(number)), omp=omp) for rank in HOSTS}


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_enough_cores() -> None:
    found = machine.cores_of_nodes(_cores(8), HOSTS, data())
    assert (found.status, found.text) == ("ok", "8 cores for 2 ranks, data.workers = 2")
    assert found.facts["nodes"]["node1"] == {"cores": 8, "ranks": 2, "processes": 6}
    assert machine.cores_of_nodes(_cores(2), HOSTS, None).text == "2 cores for 2 ranks"


def test_cores_bound_to_each_rank_are_added_up() -> None:
    by_rank = {rank: ok("", cores=[4 * rank + i for i in range(3)], omp=None) for rank in HOSTS}
    assert machine.cores_of_nodes(by_rank, HOSTS, data()).text.startswith("6 cores for 2 ranks")


def test_too_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine.cores_of_nodes(_cores(4), HOSTS, data())
    assert found.status == "warning"
    assert "node1, node2: 2 ranks of 1 + 2 processes on 4 cores; set data.workers=1" in found.text
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    found = machine.cores_of_nodes(_cores(4), HOSTS, data())
    assert "--cpus-per-task=3 and export SRUN_CPUS_PER_TASK" in found.text
    found = machine.cores_of_nodes(_cores(1), HOSTS, data(workers=0))
    assert "start fewer ranks there, or ask for more cores" in found.text


def test_threads_that_fight() -> None:
    found = machine.cores_of_nodes(_cores(8, omp="8"), HOSTS, data())
    assert "OMP_NUM_THREADS = 8 in each of 2 ranks on 8 cores" in found.text and "set it to 4" in found.text
    assert machine.cores_of_nodes(_cores(8, omp="4"), HOSTS, data()).status == "ok"
    assert machine.cores().facts["cores"] == sorted(os.sched_getaffinity(0))


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1e9]
    monkeypatch.setattr(machine.os, "statvfs", lambda _: SimpleNamespace(f_bavail=free[0], f_frsize=1))
    found = machine.shared_memory(data(), rows=64, ranks=2)
    assert found.status == "ok" and "1.0 GB free in /dev/shm; batches under way take 115.6 MB" in found.text
    free[0] = 64e6  # docker's default
    found = machine.shared_memory(data(), rows=64, ranks=2)
    assert found.status == "failed"
    assert "bus error; lower data.prefetch or data.workers" in found.text and "--shm-size" in found.text
    assert machine.shared_memory(data(workers=0), rows=64, ranks=2).status == "ok"
    assert machine.shared_memory(None, rows=0, ranks=1).text == "64.0 MB free in /dev/shm"


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert machine.open_files(data()).status == "ok"
    found = machine.open_files(data(workers=16))
    assert found.status == "warning" and "ulimit -n 1280 first (the hard limit is 4096)" in found.text
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, -1))
    assert machine.open_files(data(workers=16)).text.startswith("at most unlimited")


def test_versions() -> None:
    found = machine.software()
    assert found.status == "ok" and found.text.startswith("python 3") and "torch" in found.facts
    assert machine.same_software(dict.fromkeys(HOSTS, found), HOSTS) == found
    other = ok("", **(found.facts | {"torch": "2.0.0"}))
    mixed = machine.same_software({0: found, 1: found, 2: other, 3: other}, HOSTS)
    assert mixed.status == "failed"
    assert "2.0.0 on node2 (ranks 2, 3)" in mixed.text and "use one environment for all nodes" in mixed.text


def test_clocks() -> None:
    by_rank = {rank: ok("", seconds=seconds) for rank, seconds in enumerate((0.0, 0.02, -0.3, -0.3))}
    assert machine.clocks(by_rank, HOSTS).text == "within 0.3 s of each other"
    by_rank = {rank: ok("", seconds=seconds) for rank, seconds in enumerate((0.0, 0.0, 31.0, 31.0))}
    found = machine.clocks(by_rank, HOSTS)
    assert found.status == "warning"
    assert "node2 (ranks 2, 3): 31 s ahead of node1" in found.text and "chrony" in found.text
