"""The cache of shards on the node's disk: what is kept, what goes, and what is said when it does not fit."""

import errno
import importlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptmeup.config import load
from promptmeup.data import staging
from promptmeup.data.remote import RemoteFolder, StagingConfig, is_remote
from promptmeup.data.stager import _fitting
from promptmeup.errors import ConfigError, ShardError
from tests.support.shard_files import FINGERPRINT, shard_cache, write_files

SIZE = 100_000
ROOT = Path(__file__).parents[3]


@pytest.fixture
def shards(tmp_path):
    return write_files(tmp_path / "served", number=5, size=SIZE)


@pytest.fixture
def cache(shards, tmp_path):
    return shard_cache(f"file://{tmp_path}/served", tmp_path / "cache")


def limited(cache, *, to):
    """The same cache with room for `to` shards and a half."""
    return shard_cache(cache.remote.url, cache.folder, limit_gb=(to + 0.5) * SIZE / 1e9)


def fetch(cache, shard, **kwargs):
    return cache.fetch(shard[0], size=shard[1], sha256=shard[2], **kwargs)


def kept(cache):
    """Return the numbers of the shards in the cache; nothing else may be there."""
    names = {path.name for path in cache.path("x").parent.iterdir()} - {".locks"}
    numbers = {int(name.removeprefix("shard-").removesuffix(".tar")) for name in names}
    return sorted(numbers)


def used_ago(cache, shard, seconds):
    then = time.time() - seconds
    os.utime(cache.path(shard[0]), (then, then))


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("s3://bucket/packed/train", True),
        ("https://host/packed/train", True),
        ("file:///packed/train", True),
        ("packed/train", False),
        ("/packed/train", False),
        (r"C:\packed\train", False),
        ("C://packed/train", False),
    ],
)
def test_remote_is_what_has_a_scheme(location, remote):
    assert is_remote(location) == remote


def test_settings(tmp_path):
    assert StagingConfig().folder == Path("~/.cache/promptmeup")
    assert shard_cache(f"file://{tmp_path}", Path("~/x")).folder == Path.home() / "x"
    text = "folder: /scratch\nlimit_gb: 200\noptions: {anon: true, endpoint_url: 'http://host', max_concurrency: 2}"
    (tmp_path / "cache.yaml").write_text(text)
    config = load(StagingConfig, tmp_path / "cache.yaml")
    assert config.options == {"anon": True, "endpoint_url": "http://host", "max_concurrency": 2}
    for override in ("attempts=0", "limit_gb=0", "timeout=0", "backoff=-1"):
        with pytest.raises(ConfigError, match=override.split("=")[0]):
            load(StagingConfig, None, [override])


def test_unknown_protocol():
    with pytest.raises(ConfigError) as caught:
        RemoteFolder("gopher://user:secret@host/train", StagingConfig())
    assert "cannot read gopher://host/train: Protocol not known: gopher" in str(caught.value)
    assert "pip install 'promptmeup[remote]'" in str(caught.value)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # fsspec knows the class if another test has used it
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"cannot read s3://b/train: .*s3fs.*promptmeup\[remote\]"):
        RemoteFolder("s3://b/train", StagingConfig())


def test_fetches_once(cache, shards, tmp_path):
    path = fetch(cache, shards[1])
    assert path == cache.path("shard-000001.tar") == tmp_path / "cache" / FINGERPRINT / "shard-000001.tar"
    assert path.read_bytes() == (tmp_path / "served/shard-000001.tar").read_bytes()
    shutil.rmtree(tmp_path / "served")
    assert fetch(pickle.loads(pickle.dumps(cache)), shards[1]) == path
    assert kept(cache) == [1]


def test_files_of_subfolders(cache, tmp_path):
    (shard,) = write_files(tmp_path / "served/labels/bank", number=1, size=1000)
    name = f"labels/bank/{shard[0]}"
    path = fetch(cache, (name, *shard[1:]))
    assert path == tmp_path / "cache" / FINGERPRINT / name
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("name", ["../shard-000000.tar", "/etc/passwd", "labels/../../x", ""])
def test_names_stay_inside(cache, name):
    with pytest.raises(ShardError, match="which is no name inside its folder; pack the corpus again"):
        cache.fetch(name, size=1, sha256="")


def test_a_changed_file_is_fetched_again(cache, shards):
    path = fetch(cache, shards[0])
    os.truncate(path, 5)
    assert fetch(cache, shards[0]).stat().st_size == SIZE


def test_reads_small_files_and_lists(cache, tmp_path):
    remote = cache.remote
    (tmp_path / "served/manifest.json").write_text("{}")
    (tmp_path / "served/labels/bank").mkdir(parents=True)
    assert remote.read("manifest.json") == b"{}"
    assert remote.names("labels") == ["bank"]
    assert remote.names("labels/none") == []
    assert remote.names()[:2] == ["labels", "manifest.json"]
    with pytest.raises(FileNotFoundError):
        remote.read("absent.json")


def test_evicts_the_least_recently_used(cache, shards):
    cache = limited(cache, to=3)
    for shard in shards[:3]:
        fetch(cache, shard)
    for shard, seconds in zip(shards, (100, 300, 200), strict=False):
        used_ago(cache, shard, seconds)
    fetch(cache, shards[3])
    assert kept(cache) == [0, 2, 3]
    fetch(cache, shards[2])  # used again: now it is the youngest
    fetch(cache, shards[4])
    assert kept(cache) == [2, 3, 4]


def test_marks_a_use_once_a_minute(cache, shards):
    path = fetch(cache, shards[0])
    for seconds, marked in ((30, False), (90, True)):
        used_ago(cache, shards[0], seconds)
        fetch(cache, shards[0])
        assert (time.time() - path.stat().st_mtime < 10) == marked


def test_the_limit_counts_all_corpora_and_nothing_of_the_users(cache, shards):
    old = staging.ShardCache(cache.remote, "f" * 16)
    for shard in shards[:3]:
        fetch(old, shard)
    others = cache.folder / "photos/holiday.jpg"
    others.parent.mkdir()
    others.write_bytes(bytes(10 * SIZE))
    os.utime(others, (0, 0))
    new = limited(cache, to=2)
    fetch(new, shards[3])
    fetch(new, shards[4])
    assert kept(new) == [3, 4]
    assert kept(old) == []
    assert others.exists()


def test_open_files_outlive_eviction(cache, shards, tmp_path):
    cache = limited(cache, to=1)
    descriptor = cache.open(shards[0][0], size=SIZE, sha256=shards[0][2])
    fetch(cache, shards[1])
    assert kept(cache) == [1]
    assert os.pread(descriptor, SIZE, 0) == (tmp_path / "served/shard-000000.tar").read_bytes()
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_open_fetches_again_what_was_evicted_meanwhile(cache, shards, monkeypatch):
    evictions = iter([True, True, False])
    fetch_really = cache.fetch

    def fetch_and_lose(name, **kwargs):
        path = fetch_really(name, **kwargs)
        if next(evictions, True):
            path.unlink()
        return path

    monkeypatch.setattr(cache, "fetch", fetch_and_lose)
    os.close(cache.open(shards[0][0], size=SIZE, sha256=shards[0][2]))
    with pytest.raises(ShardError, match=r"evicted .* 10 times .* raise data.cache.limit_gb \(now None\)"):
        cache.open(shards[0][0], size=SIZE, sha256=shards[0][2])


def test_limit_below_one_shard(cache, shards):
    cache = shard_cache(cache.remote.url, cache.folder, limit_gb=5e-5)
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[0])
    assert str(caught.value) == (
        "shard-000000.tar has 0.0001 GB, data.cache.limit_gb = 5e-05 holds less; raise it, or pack smaller shards"
    )


@pytest.mark.parametrize("number", [0, 3], ids=["of the same shard", "of another shard"])
def test_parts_left_behind_make_room(cache, shards, number):
    """A killed process leaves a part of full size and no lock."""
    cache = limited(cache, to=1)
    part = cache.path(f"shard-{number:06d}.tar.part")
    part.parent.mkdir(parents=True)
    (part.parent / ".locks").mkdir()
    part.write_bytes(bytes(SIZE))
    fetch(cache, shards[0])
    assert kept(cache) == [0]


def test_parts_in_use_are_waited_for(cache, shards, tmp_path):
    """Room for one shard, which another process downloads now: it is waited for, not deleted."""
    cache = limited(cache, to=1)
    script = (
        "import fcntl, os, sys, time; part, lock = sys.argv[1:]; file = open(lock, 'w');"
        f"fcntl.flock(file, fcntl.LOCK_EX); open(part, 'wb').write(bytes({SIZE})); print(flush=True);"
        "time.sleep(0.5); os.rename(part, part.removesuffix('.part'))"
    )
    part = cache.path("shard-000001.tar.part")
    lock = part.parent / ".locks/shard-000001.tar"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", script, part, lock], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert fetch(cache, shards[1], wait=False) is None
        fetch(cache, shards[0])
    assert other.returncode == 0  # its part was there to be renamed
    assert kept(cache) == [0]


@pytest.mark.parametrize("damage", ["bytes", "size"])
def test_a_wrong_file_never_gets_the_name(cache, shards, tmp_path, damage):
    path = tmp_path / "served/shard-000002.tar"
    path.write_bytes(os.urandom(SIZE) if damage == "bytes" else bytes(SIZE - 1))
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[2])
    message = str(caught.value)
    assert message.startswith(f"cannot fetch file://{tmp_path}/served/shard-000002.tar: 6 attempts in ")
    assert {
        "bytes": f"..., the manifest says {shards[2][2][:16]}...; is the server reachable",
        "size": f"because of this: {SIZE - 1} bytes came, the manifest says {SIZE}; is the server reachable",
    }[damage] in message
    assert "was the corpus packed again meanwhile? Raise data.cache.attempts, data.cache.backoff" in message
    assert kept(cache) == []


def test_absent_file(cache, tmp_path):
    with pytest.raises(ShardError) as caught:
        cache.fetch("shard-000009.tar", size=1, sha256="")
    assert str(caught.value) == (
        f"file://{tmp_path}/served/shard-000009.tar is not on the server: the corpus was moved, deleted or "
        "packed again; check the address, then start the run again"
    )


def test_cache_folder_that_cannot_be_written(cache, shards, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ShardError) as caught:
        fetch(cache, shards[0])
    assert str(caught.value) == (
        f"cannot keep shard-000000.tar in the cache folder {tmp_path}/cache: Not a directory; set "
        "data.cache.folder to a folder on a disk of this node that can be written"
    )


FULL_DISK = """
import contextlib
import sys
from pathlib import Path
from promptmeup.errors import ShardError
from tests.support.shard_files import shard_cache, write_files
served = Path(sys.argv[1])
shards = write_files(served, number=5, size=1_000_000)
cache = shard_cache(f"file://{served}", Path("/mnt/cache"))
for name, size, sha256 in shards:
    cache.fetch(name, size=size, sha256=sha256)
print(*sorted(path.name for path in cache.path("x").parent.iterdir()), sep=",")
with open("/mnt/other", "wb", buffering=0) as file, contextlib.suppress(OSError):  # someone else fills the disk
    while True:
        file.write(bytes(4096))
cache = shard_cache(f"file://{served}", Path("/mnt/elsewhere"), limit_gb=7)
try:
    cache.fetch(shards[0][0], size=1_000_000, sha256=shards[0][2])
except ShardError as error:
    print(error)
print(*sorted(path.name for path in cache.path("x").parent.iterdir()))
"""


def test_full_disk(tmp_path):
    """A disk of 4 MiB, full after four shards: the oldest goes; where there are none, the error says so."""
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    command = 'mount -t tmpfs -o size=4m none /mnt && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run([*mount, command, "sh", "true"]).returncode:
        pytest.skip("needs the right to mount a file system in a user namespace")
    run = [*mount, command, "sh", sys.executable, "-c", FULL_DISK, tmp_path / "served"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr
    kept, message, left = done.stdout.splitlines()
    assert kept.split(",") == [".locks", *(f"shard-00000{i}.tar" for i in (1, 2, 3, 4))]
    assert message == (
        "no room for shard-000000.tar (0.001 GB) in the cache folder /mnt/elsewhere: No space left on device, "
        "and no other shard to evict (data.cache.limit_gb = 7.0); free some space, or set data.cache.folder "
        "to a larger disk of this node"
    )
    assert left == ".locks"


def test_full_quota(cache, shards, monkeypatch):
    """The same without a mount: one write fails as it does where a quota is used up."""
    for shard in shards[:2]:
        fetch(cache, shard)
    used_ago(cache, shards[0], 100)
    write, failures = os.write, iter([OSError(errno.EDQUOT, "Disk quota exceeded")])

    def write_or_fail(descriptor, data):
        for error in failures:
            raise error
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_or_fail)
    fetch(cache, shards[2])
    assert kept(cache) == [1, 2]


def test_staging_leaves_out_what_would_evict_the_first(shards):
    assert _fitting(shards, None) == shards
    assert _fitting(shards, 3 * SIZE) == shards[:3]
    assert _fitting(shards, 3 * SIZE - 1) == shards[:2]
