"""A folder of files as a server has it, what a manifest says of them, and processes that fetch them.

Light to import: the processes do.
"""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from promptmeup.data.remote import RemoteFolder, StagingConfig
from promptmeup.data.staging import ShardCache

ROOT = Path(__file__).parents[2]
FINGERPRINT = "0123456789abcdef"


def write_files(folder: Path, *, number: int, size: int) -> list[tuple[str, int, str]]:
    """Write files of random bytes; return name, size and SHA-256 of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (folder / f"shard-{i:06d}.tar").write_bytes(os.urandom(size))
    return [
        (path.name, size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.glob("shard-*.tar"))
    ]


def shard_cache(url: str, folder: Path, **settings: Any) -> ShardCache:
    """Return a cache with short pauses between attempts."""
    config = StagingConfig(folder=folder, **({"backoff": 0.01} | settings))
    return ShardCache(RemoteFolder(url, config), FINGERPRINT)


def fetch_all(cache: ShardCache, shards: list[tuple[str, int, str]]) -> None:
    """Fetch every shard and check its bytes."""
    for name, size, sha256 in shards:
        descriptor = cache.open(name, size=size, sha256=sha256)
        with os.fdopen(descriptor, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == sha256


def start_fetching(cache: ShardCache, shards: list[tuple[str, int, str]]) -> "subprocess.Popen[bytes]":
    """Run `fetch_all` in a new process, without the modules of the tests."""
    command = [sys.executable, "-m", __name__]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    assert process.stdin
    with process.stdin as pipe:
        pickle.dump((cache, shards), pipe)
    return process


if __name__ == "__main__":
    fetch_all(*pickle.load(sys.stdin.buffer))
