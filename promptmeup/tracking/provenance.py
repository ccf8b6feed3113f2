"""Where a result comes from: code, versions, machine, command and configuration, kept in the run folder."""

import getpass
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from promptmeup import shard_format
from promptmeup.config import Config, dump

PACKAGES = (
    "promptmeup",
    "torch",
    "torchvision",
    "deepspeed",
    "transformers",
    "timm",
    "webdataset",
    "spacy",
    "mlflow",
    "pydantic",
    "numpy",
    "pillow",
    "safetensors",
    "ultralytics",
)
_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_RESTART_COUNT")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


def redact(text: str) -> str:
    """Replace user and password in every URL of `text`: run folders and trackers are shared."""
    return _CREDENTIALS.sub("***@", text)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch, dirty and diff_sha256 of the work tree that tracks `folder`'s files.

    None when git is absent, fails, or does not track `folder` (an installed package inside somebody
    else's work tree says nothing about the code that ran).
    """

    def git(*arguments: str) -> bytes:
        # optional locks would let this disturb a git command that the user runs at the same time
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=20, env=environment)
        return done.stdout

    try:
        if not git("ls-files", "--", "."):
            return None
        status = git("status", "--porcelain")
        difference = git("diff", "HEAD", "--binary") if status else b""
        return {
            "commit": git("rev-parse", "HEAD").decode().strip(),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD").decode().strip(),
            "dirty": bool(status),
            "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
        }
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def code_version() -> str:
    """Return the commit that this process runs, short, or the package's version where no work tree tracks it.

    Asked once: a work tree that changes meanwhile does not change the code that is imported.
    """
    state = git_state(Path(__file__).parents[1])
    if state is None:
        return f"promptmeup {metadata.version('promptmeup')}"
    commit, changes = str(state["commit"])[:12], state["diff_sha256"]
    return f"{commit} with changes {changes[:8]}" if changes else commit


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that decide results, without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return str(os.getuid())


def environment(
    *,
    command: Sequence[str],
    gpus: Sequence[str] = (),
    world_size: int = 1,
    folder: Path = Path(__file__).parents[1],
) -> dict[str, Any]:
    """Return what this process runs on, JSON-able.

    Args:
        command: the command line, credentials in URLs are removed.
        gpus: names of the devices of this host, as the caller knows them.
        world_size: number of ranks.
        folder: where to ask git; this package by default.
    """
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [redact(part) for part in command],
        "user": _user(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": list(gpus),
        "world_size": world_size,
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k in _SLURM},
        "python": platform.python_version(),
        "packages": versions(),
        "git": git_state(folder),
    }


def write_run_folder(folder: Path, *, config: Config, environment: dict[str, Any]) -> list[Path]:
    """Write the resolved configuration and the environment; return the files of this start.

    The first start writes config.yaml and environment.json. A later one keeps them and adds
    environment-<n>.json, and config-<n>.yaml where the configuration differs from the last one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    text = redact(dump(config))
    number = 1
    while (_numbered(folder, "environment", number, "json")).exists():
        number += 1
    earlier = [_numbered(folder, "config", n, "yaml") for n in range(number, 0, -1)]
    last = next((path for path in earlier if path.exists()), None)
    if last is None or last.read_text(encoding="utf-8") != text:
        path = _numbered(folder, "config", number if last else 1, "yaml")
        shard_format.write_atomically(path, text.encode())
        written.append(path)
    path = _numbered(folder, "environment", number, "json")
    shard_format.write_json(path, environment)
    return [*written, path]


def last_config(folder: Path) -> dict[str, Any] | None:
    """Return the resolved configuration of the last start in a run folder; None where none is readable."""
    found = _last(folder, "config", "yaml")
    try:
        return yaml.safe_load(found) if found is not None else None
    except yaml.YAMLError:
        return None


def last_environment(folder: Path) -> dict[str, Any] | None:
    """Return the environment of the last start in a run folder; None where none is readable."""
    found = _last(folder, "environment", "json")
    try:
        return json.loads(found) if found is not None else None
    except ValueError:
        return None


def _last(folder: Path, stem: str, suffix: str) -> str | None:
    """Return the text of the file with the highest number; a start whose configuration is the last one's wrote none."""
    numbers = {
        path: int(path.stem.removeprefix(stem).lstrip("-") or 1)
        for path in folder.glob(f"{stem}*.{suffix}")
        if re.fullmatch(rf"{stem}(-\d+)?", path.stem)
    }
    try:
        return max(numbers, key=lambda path: numbers[path]).read_text(encoding="utf-8") if numbers else None
    except OSError:
        return None


def _numbered(folder: Path, stem: str, number: int, suffix: str) -> Path:
    return folder / (f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}")
