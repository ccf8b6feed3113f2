"""A cache of remote shards on the node's disk, shared by its ranks, their workers and other runs.

    <folder>/<fingerprint>/<name>            whole and checked: a file gets its name last
    <folder>/<fingerprint>/<name>.part       being downloaded, or left behind by a killed process
    <folder>/<fingerprint>/.locks/<name>     held (flock) by the one process that downloads it
    <folder>/.lock                           held while shards are evicted

The kernel releases the locks of a killed process, so a kill at any moment blocks nobody. A part that
nobody holds is overwritten by the next download, and evicted before any shard.
"""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, overload

from promptmeup.data.remote import RemoteFolder
from promptmeup.data.transfers import NotOnServerError, TransferError
from promptmeup.errors import ShardError

LOCKS = ".locks"
SHARD = "shard-"
PART = ".part"
TOUCH_AFTER = 60  # seconds; a reader that opens a shard often need not write its times as often
OPENINGS = 10
FULL = (errno.ENOSPC, errno.EDQUOT)


class _File(NamedTuple):
    is_shard: bool  # not a part; sorts after the parts
    used: float  # seconds since 1970
    size: int
    path: Path


@contextmanager
def _exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`, and say whether it is held: without `wait`, another may hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        if held:  # closing is not enough where a fork has copied the descriptor
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class ShardCache:
    """The files of one remote split, fetched once a node. It may be pickled and used after a fork.

    Args:
        remote: where they come from, and the settings of the cache.
        fingerprint: the corpus's; under the same one, a name always means the same content.
    """

    def __init__(self, remote: RemoteFolder, fingerprint: str) -> None:
        self.remote = remote
        self.fingerprint = fingerprint
        self.folder = remote.config.folder.expanduser()
        limit_gb = remote.config.limit_gb
        self.limit = None if limit_gb is None else int(limit_gb * 1e9)
        """Bytes of all files of the folder, whichever corpus they belong to."""

    def path(self, name: str) -> Path:
        """Return where the file is, or will be after `fetch`.

        Raises:
            ShardError: `name` leads out of the folder.
        """
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ShardError(
                f"the manifest of {self.remote.shown} names the file {name!r}, which is no name inside its "
                "folder; pack the corpus again"
            )
        return self.folder / self.fingerprint / name

    @overload
    def fetch(self, name: str, *, size: int, sha256: str, wait: Literal[True] = True) -> Path: ...

    @overload
    def fetch(self, name: str, *, size: int, sha256: str, wait: bool) -> Path | None: ...

    def fetch(self, name: str, *, size: int, sha256: str, wait: bool = True) -> Path | None:
        """Return the path of the local file, downloaded and checked if it was not there.

        Another process may evict it before you open it (`open` sees to that); once open it stays readable.

        Args:
            size: bytes of the file.
            sha256: its hash, in hex.
            wait: for another process that downloads it now; without, None is returned in that case.

        Raises:
            ShardError: it is gone from the server, cannot be fetched, or does not fit into the cache.
            ConfigError: the options do not fit the protocol.
        """
        path = self.path(name)
        try:
            if self._has(path, size):
                return path
            with _exclusive(self._lock(path), wait=wait) as held:
                if not held:
                    return None
                if not self._has(path, size):  # another process may have fetched it while this one waited
                    self.remote.retry(name, lambda: self._download(path, name, size, sha256))
        except NotOnServerError as error:
            raise ShardError(
                f"{self.remote.shown}/{name} is not on the server: the corpus was moved, deleted or packed "
                "again; check the address, then start the run again"
            ) from error
        except OSError as error:
            raise ShardError(
                f"cannot keep {name} in the cache folder {self.folder}: {error.strerror or error}; set "
                "data.cache.folder to a folder on a disk of this node that can be written"
            ) from error
        return path

    def open(self, name: str, *, size: int, sha256: str) -> int:
        """Return a descriptor of the file for reading, fetched again if it was evicted before it was open.

        Raises:
            ShardError: as `fetch`, or the file was evicted every time.
        """
        for _ in range(OPENINGS):
            path = self.fetch(name, size=size, sha256=sha256)
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise ShardError(
            f"{name} was evicted from the cache folder {self.folder} {OPENINGS} times before it could be "
            f"opened; raise data.cache.limit_gb (now {self.remote.config.limit_gb}): it must hold the shards "
            "that all processes of the node read at a time"
        )

    def _lock(self, path: Path) -> Path:
        root = self.folder / self.fingerprint
        return root / LOCKS / path.relative_to(root)

    def _has(self, path: Path, size: int) -> bool:
        """Return whether the file is there, and mark it as used."""
        try:
            status = path.stat()
            if status.st_size != size:  # changed by someone else: it is downloaded again
                return False
            if time.time() - status.st_mtime > TOUCH_AFTER:
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _download(self, path: Path, name: str, size: int, sha256: str) -> None:
        """Download once; after a disk that was full, shards are evicted and it is done again."""
        part = path.with_name(path.name + PART)
        while True:
            try:
                with os.fdopen(self._reserve(part, size), "wb", buffering=0) as file:
                    self._receive(file.fileno(), name, size, sha256)
                    os.fsync(file.fileno())  # or a power cut could leave a file of the right size, empty
                part.replace(path)
                return
            except OSError as error:
                if error.errno not in FULL:
                    raise
                part.unlink(missing_ok=True)
                with self._evicting():
                    freed = self._evict(self._files(), size)
                if not freed:
                    limit = self.remote.config.limit_gb
                    raise ShardError(
                        f"no room for {name} ({size / 1e9:.3g} GB) in the cache folder {self.folder}: "
                        f"{error.strerror}, and no other shard to evict (data.cache.limit_gb = "
                        f"{'null' if limit is None else limit}); free some space, or set data.cache.folder to "
                        "a larger disk of this node"
                    ) from error
            finally:
                part.unlink(missing_ok=True)

    def _receive(self, descriptor: int, name: str, size: int, sha256: str) -> None:
        digest, received = hashlib.sha256(), 0
        with closing(self.remote.stream(name)) as chunks:
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    raise TransferError(f"more came than the {size} bytes that the manifest says")
                digest.update(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
        if received != size:
            raise TransferError(f"{received} bytes came, the manifest says {size}")
        if digest.hexdigest() != sha256:
            raise TransferError(
                f"what came has the SHA-256 {digest.hexdigest()[:16]}..., the manifest says {sha256[:16]}..."
            )

    def _evicting(self) -> AbstractContextManager[bool]:
        return _exclusive(self.folder / ".lock", wait=True)

    def _reserve(self, part: Path, size: int) -> int:
        """Return a descriptor of the part file, of full size so that others count it, after making room.

        Raises:
            ShardError: the file alone is larger than the limit.
        """
        if self.limit is not None and size > self.limit:
            raise ShardError(
                f"{part.name.removesuffix(PART)} has {size / 1e9:.3g} GB, data.cache.limit_gb = "
                f"{self.remote.config.limit_gb} holds less; raise it, or pack smaller shards"
            )
        part.unlink(missing_ok=True)  # a killed process left it; it counts against the limit
        while True:
            with self._evicting():
                files = self._files()
                excess = 0 if self.limit is None else sum(file.size for file in files) + size - self.limit
                if self._evict(files, excess) >= excess:
                    part.parent.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                    os.truncate(descriptor, size)
                    return descriptor
            time.sleep(0.05)  # others download into the rest; what is finished can be evicted

    def _files(self) -> list[_File]:
        """Return the files of all shards of all corpora of the cache: parts first, then the least recently used.

        Only folders with locks: the user may keep other things beside them. And only what belongs to one shard:
        every process of a run needs manifest and tables, also those that start later.
        """
        files = []
        for locks in self.folder.glob(f"*/{LOCKS}"):
            for folder, subfolders, names in os.walk(locks.parent):
                if LOCKS in subfolders:
                    subfolders.remove(LOCKS)
                for name in names:
                    if not name.startswith(SHARD):
                        continue
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        files.append(_File(path.suffix != PART, status.st_mtime, status.st_size, path))
        return sorted(files)

    def _evict(self, files: list[_File], needed: int) -> int:
        """Delete the first files until `needed` bytes are free; return how many are."""
        freed = 0
        for file in files:
            if freed >= needed:
                break
            if file.is_shard:
                file.path.unlink(missing_ok=True)
                freed += file.size
                continue
            corpus = self.folder / file.path.relative_to(self.folder).parts[0]
            shard = file.path.with_suffix("")
            with _exclusive(corpus / LOCKS / shard.relative_to(corpus), wait=False) as held:
                if held:  # nobody downloads it
                    file.path.unlink(missing_ok=True)
                    freed += file.size
        return freed
