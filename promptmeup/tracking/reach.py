"""Does MLflow answer? Asked without importing MLflow, which takes seconds and would make a store that is not there."""

import base64
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from promptmeup.tracking.mlflow_run import sqlite_file
from promptmeup.tracking.provenance import redact

SECONDS = 5.0


def reach(uri: str, *, timeout: float = SECONDS) -> tuple[bool, str]:
    """Return whether the store or server `uri` can be used, and one line that says so or what to do."""
    shown = redact(uri)
    if (file := sqlite_file(uri)) is not None:
        return _sqlite(file, shown)
    if uri.startswith(("http://", "https://")):
        return _server(uri, shown, timeout)
    return True, f"{shown}: not asked, another kind of store than a server or SQLite"


def _sqlite(file: Path, shown: str) -> tuple[bool, str]:
    folder = file.parent
    while not folder.is_dir():
        folder = folder.parent
    place = file if file.exists() else folder
    if not os.access(place, os.W_OK) or not os.access(folder, os.W_OK):
        return False, f"{shown}: cannot write to {place}; set tracking.uri to a file that can be written"
    return True, f"{shown}: {'there' if file.exists() else 'will be made'}"


def _server(uri: str, shown: str, timeout: float) -> tuple[bool, str]:
    way_out = (
        "training goes on without it and the journal keeps every value; check the address (tracking.uri) "
        "from this node, or "
        "set tracking.uri=null"
    )
    try:
        with urllib.request.urlopen(_request(uri), timeout=timeout) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False, (
                f"{shown} refuses this user ({error.code}): set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN"
            )
        return False, f"{shown} answers {error.code}, so it may be no MLflow server; {way_out}"
    except ValueError:
        return False, f"{shown} answers, but not as an MLflow server; {way_out}"
    except (TimeoutError, OSError) as error:
        reason = getattr(error, "reason", error)
        return False, f"{shown} does not answer within {timeout:g} s ({redact(str(reason))}); {way_out}"
    return True, f"{shown} answers"


def _request(uri: str) -> urllib.request.Request:
    """Return the cheapest question that needs the store and the user's rights, like MLflow's client asks it."""
    parts = urlsplit(uri)
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    headers = {"Content-Type": "application/json"}
    if user is not None and password is not None:
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    place = parts.netloc.rpartition("@")[2]
    path = f"{parts.path.rstrip('/')}/api/2.0/mlflow/experiments/search"
    address = urlunsplit((parts.scheme, place, path, "", ""))
    return urllib.request.Request(address, data=b'{"max_results": 1}', headers=headers, method="POST")
