"""One transfer from a server: how a client of each protocol is set up, and what its errors mean."""

import asyncio
import re
from typing import Any

CHUNK = 4 << 20  # bytes; a change of threads costs 0.1 ms, which 4 MiB hide


class NotOnServerError(FileNotFoundError):
    """The server answers and says that there is no such file; asking again does not help."""


class TransferError(Exception):
    """An attempt failed; `final` when the next one would fail as well."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def without_password(text: str) -> str:
    """Return `text` with user and password left out of the URLs in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def describe(error: Exception) -> str:
    """Return class and message of `error` in one line of bounded length, without passwords of URLs."""
    text = without_password(" ".join(str(error).split()))[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def as_failure(error: Exception, timeout: float) -> NotOnServerError | TransferError:
    """Return what `error`, raised by a filesystem, means."""
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return NotOnServerError(describe(error))
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TransferError(f"nothing came for {timeout:g} s ({describe(error)})")
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    keyless = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    return TransferError(describe(error), final=refused or keyless or isinstance(error, PermissionError))


async def _http_client(**kwargs: Any) -> Any:
    """Return an aiohttp session; it keeps no connection open that a fork could inherit."""
    import aiohttp

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), **kwargs)


def client_settings(protocol: str, timeout: float) -> dict[str, Any]:
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


async def read_chunk(file: Any, timeout: float) -> bytes:
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


async def close(file: Any) -> None:
    """Close an asynchronous file and its connection: a transfer that was left must not run on."""
    response = getattr(file, "r", None)  # s3fs leaves this one open
    if response is not None:
        response.close()
    await file.close()
