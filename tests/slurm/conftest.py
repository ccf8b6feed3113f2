"""A real Slurm of three simulated hosts with their own names, networks and process tables (cluster.sh)."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import news_world  # noqa: F401
from tests.support.real_data import ROOT

SCRIPT = Path(__file__).with_name("cluster.sh")
COMMANDS = ("slurmctld", "slurmd", "munged", "unshare", "nsenter", "ip")


@dataclass(frozen=True)
class Cluster:
    """The cluster, and what a person types on it."""

    environment: dict[str, str]

    def tool(self, *arguments: str, check: bool = True) -> str:
        """Run a command of the cluster: sbatch, scontrol, ..., or a verb of cluster.sh."""
        is_verb = arguments[0] in ("kill", "start", "wait", "exec", "logs", "status")
        command = [str(SCRIPT), *arguments] if is_verb else list(arguments)
        found = shutil.which(command[0], path=self.environment["PATH"])
        assert found is not None, command[0]
        done = subprocess.run(
            [found, *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            cwd=ROOT,
            timeout=600,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str, log: Path, variables: dict[str, str] | None = None) -> str:
        """Submit a script with its output in `log`; return the job's number."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in (variables or {}).items())])
        options = ("--parsable", f"--output={log}", f"--export={exported}", "--gpus-per-node=0")
        return self.tool("sbatch", *options, *arguments).strip()

    def fact(self, job: str, name: str) -> str:
        """Return what `scontrol show job` says."""
        found = re.search(rf"\b{name}=(\S+)", self.tool("scontrol", "-o", "show", "job", job))
        return found[1] if found else ""

    def wait(self, job: str, seconds: float = 300) -> str:
        """Return the job's last state once it has ended."""
        return self.tool("wait", job, str(round(seconds)), check=False).strip()


def until(condition: Callable[[], object], *, seconds: float, log: Path) -> None:
    """Wait; on failure show the job's log."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not in {seconds} s; the log:\n{log.read_text() if log.exists() else 'none'}")
        time.sleep(0.5)


def steps_of(run: Path) -> int:
    """Return the last step in a run's journal as it counts, or 0; cheap enough to be asked all the time."""
    path = run / "journal.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().split(b"\n")[1:-1]  # the first and the last may be in part
    found = (json.loads(line) for line in reversed(lines))
    return next((line["step"] for line in found if line["event"] in ("step", "resume")), 0)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with all of its nodes idle, before and, whatever a test has left, after it."""
    yield running_cluster
    running_cluster.tool("scancel", "--user=root")
    for node in ("node1", "node2", "node3"):
        running_cluster.tool("start", node)
    until(
        lambda: "3 idle" in running_cluster.tool("sinfo", "-h", "-o", "%D %t"),
        seconds=120,
        log=Path("/dev/null"),
    )


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    missing = [name for name in COMMANDS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"a real Slurm needs root and Debian's packages slurmctld, slurmd, munge: {missing or 'not root'}"
        )
    folder = f"/tmp/slurm-{os.getpid()}"  # sockets and slurm.conf want short paths
    environment = {
        **os.environ,
        "SLURM_CLUSTER_DIR": folder,
        "SLURM_CLUSTER_CPUS": "4",
        "SLURM_CLUSTER_GPUS": "0",
        "PATH": f"{folder}/bin:{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}",
        "SLURM_CONF": f"{folder}/etc/slurm.conf",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "DOCTOR": "off",
    }
    subprocess.run([SCRIPT, "up", "3"], check=True, env=environment)
    try:
        yield Cluster(environment)
    finally:
        subprocess.run([SCRIPT, "down"], check=True, env=environment)
