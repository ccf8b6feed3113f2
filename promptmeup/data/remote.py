"""A packed split on a server (HTTP, S3, whatever fsspec knows), read whole files at a time.

Nothing here or in what uses it imports torch: the process that fetches ahead has to stay small.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from pydantic import Field

from promptmeup.config import Config
from promptmeup.data import transfers
from promptmeup.data.transfers import NotOnServerError, TransferError, without_password
from promptmeup.errors import ConfigError, ShardError

T = TypeVar("T")

LONGEST_PAUSE = 30.0  # seconds

# Neither `random` nor numpy: their states belong to the training, and equal seeds on all ranks would have
# them come back to an overloaded server at the same moment.
_RANDOM = SystemRandom()

# Filesystems that a fork left here. Their event loop has no thread in this process and shares its epoll
# instance with the parent, so closing their connections would break the parent's: they are kept, unused.
_INHERITED: list[Any] = []


class StagingConfig(Config):
    """How shards on a server come to this node."""

    folder: Path = Path("~/.cache/promptmeup")
    """where shards are kept; best on a disk of the node's own"""
    limit_gb: float | None = Field(default=None, gt=0)
    """size limit of the folder's shards in 10^9 bytes, least recently used ones go first; null: no limit"""
    attempts: int = Field(default=6, ge=1, le=100)
    """how often a file is tried before the run stops"""
    backoff: float = Field(default=0.5, ge=0, le=LONGEST_PAUSE)
    """seconds before the second attempt, doubled before each further one up to 30"""
    timeout: float = Field(default=60, gt=0)
    """seconds without a byte after which an attempt has failed"""
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """passed to the fsspec filesystem of the address: {endpoint_url: ..., anon: true} for S3"""


def is_remote(location: str) -> bool:
    """Return whether `location` has a scheme, like s3://bucket/packed/train; a Windows drive is none."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


class RemoteFolder:
    """The folder of a packed split at an fsspec URL. It may be pickled, and used on both sides of a fork.

    Raises:
        ConfigError: no such protocol, its package is not installed, or the options do not fit it.
    """

    def __init__(self, url: str, config: StagingConfig) -> None:
        assert is_remote(url)
        self.url = url.rstrip("/")
        self.config = config
        self.shown = without_password(self.url)
        """The URL without user and password, for messages."""
        self._connection: tuple[int, Any, str] | None = None
        try:
            fsspec.get_filesystem_class(self.protocol)  # imports it, once for all forked workers
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"cannot read {self.shown}: {error}; use http, https, s3 or file, or install what the "
                "protocol needs: pip install 'promptmeup[remote]'"
            ) from error

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0].lower()

    def __reduce__(self) -> tuple[type["RemoteFolder"], tuple[str, StagingConfig]]:
        return RemoteFolder, (self.url, self.config)

    def _connected(self) -> tuple[Any, str]:
        """Return this process's filesystem, and the folder's path in it."""
        if self._connection is not None:
            process, filesystem, root = self._connection
            if process == os.getpid():
                return filesystem, root
            _INHERITED.append(filesystem)
        settings = transfers.client_settings(self.protocol, self.config.timeout)
        try:
            # fsspec would hand out an instance that others use too
            filesystem, root = fsspec.url_to_fs(
                self.url, **(settings | self.config.options), skip_instance_cache=True
            )
        except Exception as error:
            raise self._wrong_options(error) from error
        if hasattr(filesystem, "retries"):
            filesystem.retries = 1  # s3fs has a loop of its own around botocore's
        self._connection = os.getpid(), filesystem, root.rstrip("/")
        return filesystem, root.rstrip("/")

    def _wrong_options(self, error: Exception) -> ConfigError:
        # their names alone: a value may be a password
        given = ", ".join(self.config.options) or "none"
        return ConfigError(
            f"cannot use {self.shown} with these options in data.cache.options: {given} "
            f"({transfers.describe(error)}); see fsspec's documentation for those of {self.protocol}://"
        )

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the content of a file in chunks, one attempt; close the generator if you leave it early.

        Raises:
            NotOnServerError: there is no such file.
            TransferError: the attempt failed.
            ConfigError: the options do not fit the protocol.
        """
        filesystem, root = self._connected()
        path, timeout = f"{root}/{name}", self.config.timeout
        # some asynchronous filesystems cannot stream
        is_async = getattr(type(filesystem), "open_async", AsyncFileSystem.open_async) is not (
            AsyncFileSystem.open_async
        )
        file, received = None, 0
        try:
            if is_async:
                # one GET for the whole file; a size given, whichever, spares a HEAD before it
                file = sync(filesystem.loop, filesystem.open_async, path, "rb", size=0)
                if self.protocol in ("http", "https"):
                    file.kwargs = filesystem.kwargs  # arguments of its GET, which fsspec's file forgets
            else:
                file = filesystem.open(path, "rb")
            while (
                chunk := sync(filesystem.loop, transfers.read_chunk, file, timeout)
                if is_async
                else file.read(transfers.CHUNK)
            ):
                received += len(chunk)
                yield chunk
        except (TypeError, ValueError) as error:
            if received:
                raise TransferError(transfers.describe(error)) from error
            raise self._wrong_options(error) from error
        except Exception as error:
            raise transfers.as_failure(error, timeout) from error
        finally:
            if file is not None and is_async:
                asyncio.run_coroutine_threadsafe(transfers.close(file), filesystem.loop)
            elif file is not None:
                file.close()

    def retry(self, name: str, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, called again after a pause each time that it fails.

        Raises:
            NotOnServerError: as `attempt` raised it.
            ShardError: the last attempt failed, or the server refuses.
        """
        config, start = self.config, time.monotonic()
        for number in range(1, config.attempts + 1):
            try:
                return attempt()
            except TransferError as error:
                if error.final:
                    given = ", ".join(config.options) or "none"
                    raise ShardError(
                        f"the server refuses {self.shown}/{name}: {error}; check the address, your "
                        f"credentials and data.cache.options (given: {given})"
                    ) from error
                if number == config.attempts:
                    raise ShardError(
                        f"cannot fetch {self.shown}/{name}: {number} attempts in "
                        f"{time.monotonic() - start:.1f} s failed, the last because of this: {error}; is the "
                        "server reachable from this node, and was the corpus packed again meanwhile? Raise "
                        "data.cache.attempts, data.cache.backoff or data.cache.timeout to wait longer"
                    ) from error
            pause = min(LONGEST_PAUSE, config.backoff * 2 ** (number - 1))
            time.sleep(pause * _RANDOM.uniform(0.5, 1))
        raise AssertionError("attempts >= 1")

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            FileNotFoundError: the server has no such file.
            ShardError: it cannot be reached, or refuses.
        """
        return self.retry(name, lambda: b"".join(self.stream(name)))

    def names(self, subfolder: str = "") -> list[str]:
        """Return the sorted names in a subfolder; none if it is not there or the server lists nothing.

        Raises:
            ShardError: the server cannot be reached.
        """
        filesystem, root = self._connected()
        folder = f"{root}/{subfolder}".rstrip("/") + "/"

        def attempt() -> list[str]:
            try:
                return list(filesystem.ls(folder, detail=False))
            except Exception as error:
                failure = transfers.as_failure(error, self.config.timeout)
                if isinstance(failure, NotOnServerError) or failure.final:
                    return []
                raise failure from error

        found = {path.rstrip("/").removeprefix(folder) for path in self.retry(subfolder, attempt)}
        # a page may link elsewhere, or to itself in another order (?C=M;O=D)
        return sorted(name for name in found if name and not re.search(r"[/?#]", name))
