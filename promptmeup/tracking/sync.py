"""Send to MLflow what it lacks of run folders: python -m promptmeup.tracking.sync RUN_DIR [RUN_DIR ...] [--uri URI]"""

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from promptmeup.config import user_errors
from promptmeup.errors import TrackingError, UserError
from promptmeup.tracking import journal
from promptmeup.tracking.mlflow_run import import_mlflow, lock_run, open_run, reason_of, sqlite_file
from promptmeup.tracking.provenance import last_config, redact
from promptmeup.tracking.settings import TrackedDataset, TrackingConfig
from promptmeup.tracking.tracker import run_facts

_QUIET_SECONDS = 600.0
"""a run of another host whose journal was silent for so long is over: locks may not reach across hosts"""


def main(argv: Sequence[str] | None = None) -> int:
    """Send the steps, files and final status of runs that MLflow lacks, after an outage or a kill.

    Safe to repeat: every step arrives once. A run that is still going on gets its steps, and keeps its status.
    """
    parser = argparse.ArgumentParser(prog="python -m promptmeup.tracking.sync", description=main.__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folder, or a folder of run folders"
    )
    parser.add_argument("--uri", help="MLflow's store or server, where it is not the run's own tracking.uri")
    arguments = parser.parse_args(argv)
    failed = 0
    with user_errors():
        for folder in [run for given in arguments.folders for run in run_folders(given)]:
            try:
                print(f"{folder}: {sync(folder, uri=arguments.uri)}", flush=True)
            except UserError as error:  # the other runs may be well
                print(f"{folder}: {error}", file=sys.stderr, flush=True)
                failed = error.exit_code
    return failed


def run_folders(folder: Path) -> list[Path]:
    """Return `folder`, or those in it that hold a journal, such as the seeds of a fine-tuning.

    Raises:
        TrackingError: neither holds one.
    """
    if (folder / "journal.jsonl").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/journal.jsonl"))
    if not found:
        raise TrackingError(
            f"{folder} holds no run (no journal.jsonl there or in its folders); give a run folder"
        )
    return found


def sync(folder: Path, *, uri: str | None = None) -> str:
    """Send what MLflow lacks of the run in `folder`; return what was done, for a person.

    Raises:
        TrackingError: the folder says too little, or MLflow cannot be reached or refuses.
    """
    path = folder / "journal.jsonl"
    start = journal.last_start(path)
    if start is None:
        raise TrackingError(f"{path} has no start: nothing was ever run there")
    resolved, config = _settings(folder, start, uri)
    assert config.uri is not None
    facts = run_facts(
        resolved,
        environment=start.get("environment") or {},
        folder=folder,
        datasets=[TrackedDataset(**data) for data in start.get("datasets") or ()],
        parent=Path(start["parent"]) if start.get("parent") else None,
    )
    try:
        import_mlflow(config.uri)
        with lock_run(folder):
            run = open_run(folder, config, facts, is_running=is_running(folder, start))
            lines = run.send_lines()
            # asked again: it may have been started or have ended meanwhile
            going_on = is_running(folder, start)
            if not going_on:
                status = run.backlog.ending or "FAILED"
                if run.status != status:
                    run.end(status, milliseconds=run.backlog.milliseconds)
            files = run.send_files()
    except Exception as error:
        raise TrackingError(
            f"MLflow at {redact(config.uri)} failed ({reason_of(error)}); nothing is lost: the folder "
            "keeps everything, start this again when MLflow answers"
        ) from error
    sent = f"{lines} lines and {files} files" if lines or files else "nothing was missing"
    if going_on:
        ending = "still running: its status is left to it"
    else:
        ending = status + ("" if run.backlog.ending else " (its process died without a word)")
    return f"{sent} -> run {run.id} at {redact(config.uri)}, {ending}"


def is_running(folder: Path, start: dict[str, Any]) -> bool:
    """Whether the run's process lives, as far as can be known from here."""
    path = folder / "journal.jsonl"
    if journal.is_being_written(path):
        return True
    host = (start.get("environment") or {}).get("host")
    if host in (None, socket.gethostname()):
        return False
    *_, last = journal.read(path)
    return last["event"] != "finish" and time.time() - path.stat().st_mtime < _QUIET_SECONDS


def _settings(folder: Path, start: dict[str, Any], uri: str | None) -> tuple[dict[str, Any], TrackingConfig]:
    """Return the run's resolved configuration, and its tracking with the store that is meant."""
    resolved = last_config(folder)
    if resolved is None:
        raise TrackingError(f"{folder} has no readable config.yaml, which says what was run: restore it")
    chosen = uri or start.get("store") or (resolved.get("tracking") or {}).get("uri")
    if chosen is None:
        raise TrackingError("was started with tracking.uri=null: say where it should go with --uri URI")
    if uri is None and "***@" in chosen:
        if not chosen.startswith("http"):
            raise TrackingError(f"run folders keep no passwords: give {chosen} with its own as --uri URI")
        chosen = chosen.replace("***@", "")  # MLFLOW_TRACKING_USERNAME and _PASSWORD are MLflow's own way
    file = sqlite_file(chosen)
    if uri is None and file and not file.exists():
        raise TrackingError(
            f"its store {chosen} is not there (any more): say where it should go with --uri URI"
        )
    try:
        # of another version of this program perhaps: what it does not know does not matter here
        kept = {n: v for n, v in (resolved.get("tracking") or {}).items() if n in TrackingConfig.model_fields}
        return resolved, TrackingConfig.model_validate({**kept, "uri": chosen})
    except ValidationError as error:
        raise TrackingError(
            f"--uri {chosen}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
