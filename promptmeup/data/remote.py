"""A packed split on a server (HTTP, S3, whatever fsspec knows), read whole files at a time.

Nothing here or in staging.py imports torch: the process that fetches ahead has to stay small.
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
from promptmeup.errors import ConfigError, ShardError

T = TypeVar("T")

CHUNK = 4 << 20  # bytes; a change of threads costs 0.1 ms, which 4 MiB hide
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
    """size limit of the whole folder in 10^9 bytes, least recently used shards go first; null: no limit"""
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


class NotOnServerError(FileNotFoundError):
    """The server answers and says that there is no such file; asking again does not help."""


class TransferError(Exception):
    """An attempt failed; `final` when the next one would fail as well."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def _describe(error: Exception) -> str:
    """Return class and message of `error` in one line of bounded length."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _as_failure(error: Exception, timeout: float) -> NotOnServerError | TransferError:
    """Return what `error`, raised by a filesystem, means."""
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return NotOnServerError(str(error))
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TransferError(f"nothing came for {timeout:g} s ({_describe(error)})")
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    keyless = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    return TransferError(_describe(error), final=refused or keyless or isinstance(error, PermissionError))


async def _http_client(**kwargs: Any) -> Any:
    """Return an aiohttp session; it keeps no connection open that a fork could inherit."""
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), **kwargs)


def _client_settings(protocol: str, timeout: float) -> dict[str, Any]:
    """Return the arguments that make a filesystem of `protocol` try once, and wait `timeout` seconds."""
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        # trust_env: proxies are taken from the environment, as botocore does
        return {"get_client": _http_client, "client_kwargs": {"timeout": limits, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        return {
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": timeout,
                "read_timeout": timeout,
                "retries": {"total_max_attempts": 1},
                # aiobotocore sets a keep-alive time where none is given, and aiohttp refuses the two together
                "connector_args": {"force_close": True, "keepalive_timeout": None},
            },
        }
    return {}


async def _read_chunk(file: Any, timeout: float) -> bytes:
    """Return the next CHUNK bytes of an asynchronous file, fewer at its end."""
    parts, missing = [], CHUNK
    while missing:
        async with asyncio.timeout(timeout):  # for filesystems whose own limit is not known here
            part = await file.read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


async def _close(file: Any) -> None:
    """Close an asynchronous file and its connection: a transfer that was left must not run on."""
    response = getattr(file, "r", None)  # s3fs leaves this one open
    if response is not None:
        response.close()
    await file.close()


class RemoteFolder:
    """The folder of a packed split at an fsspec URL. It may be pickled, and used on both sides of a fork.

    Raises:
        ConfigError: no such protocol, its package is not installed, or the options do not fit it.
    """

    def __init__(self, url: str, config: StagingConfig) -> None:
        assert is_remote(url)
        self.url = url.rstrip("/")
        self.config = config
        self.shown = re.sub(r"//[^/@]*@", "//", self.url)
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
        settings = _client_settings(self.protocol, self.config.timeout)
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
            f"cannot use {self.shown} with these options in data.cache.options: {given} ({_describe(error)}); "
            f"see fsspec's documentation for those of {self.protocol}://"
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
                chunk := sync(filesystem.loop, _read_chunk, file, timeout) if is_async else file.read(CHUNK)
            ):
                received += len(chunk)
                yield chunk
        except (TypeError, ValueError) as error:
            if received:
                raise TransferError(_describe(error)) from error
            raise self._wrong_options(error) from error
        except Exception as error:
            raise _as_failure(error, timeout) from error
        finally:
            if file is not None and is_async:
                asyncio.run_coroutine_threadsafe(_close(file), filesystem.loop)
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
                failure = _as_failure(error, self.config.timeout)
                if isinstance(failure, NotOnServerError) or failure.final:
                    return []
                raise failure from error

        found = {path.rstrip("/").removeprefix(folder) for path in self.retry(subfolder, attempt)}
        # a page may link elsewhere, or to itself in another order (?C=M;O=D)
        return sorted(name for name in found if name and not re.search(r"[/?#]", name))
