"""One MLflow run: found or made, its facts, and the journal's lines that it lacks."""

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmeup.errors import ConfigError
from promptmeup.shard_format import write_atomically
from promptmeup.tracking import journal
from promptmeup.tracking.backlog import Backlog, clean_name
from promptmeup.tracking.provenance import redact
from promptmeup.tracking.settings import RunFacts, TrackingConfig

_IDENTITY_TAG = "promptmeup.run"
_METRICS_A_CALL = 900  # MLflow takes 1000 metrics, params and tags together
_PARAMS_A_CALL = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_ENVIRONMENT = {
    # MLflow's own 7 retries with growing pauses take minutes a call when the server is away
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # two lines with pictures at the end of every run, from a thread, into whatever is being printed
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def insist_on_mlflow(uri: str | None) -> None:
    """Return if a run that reports to `uri` can import MLflow; call it before anything costs time.

    Raises:
        ConfigError: it is not installed, as on a GPU node without the internet.
    """
    if uri is not None and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            f"tracking.uri = {redact(uri)}, and MLflow is not installed: switch it off with tracking.uri=null (the run "
            "folder keeps every value, and `python -m promptmeup.tracking.sync RUN_DIR --uri URI` sends them later, "
            "from where MLflow is), or pip install mlflow"
        )


def import_mlflow(uri: str) -> None:
    """Import what a run in the store `uri` needs, quietly; takes 2 to 8 seconds the first time.

    Call it in the thread that will fork data workers: one forked while another thread imports inherits
    import locks that nobody in it releases, and hangs at its own first import.
    """
    set_environment()
    modules = ["mlflow", "mlflow.artifacts", "mlflow.entities"]
    if not uri.startswith(("http", "databricks")):
        modules += ["mlflow.store.tracking.sqlalchemy_store", "alembic.command"]
    for module in modules:
        importlib.import_module(module)
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every retry


def set_environment() -> None:
    """Tell MLflow to be quiet and not to try for minutes; call it before its first import."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def run_id(folder: Path) -> str | None:
    """Return the MLflow run of a run folder, to nest a fine-tuning run below it; None before the first."""
    try:
        return (folder / "mlflow_run_id").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


Present = dict[str, tuple[int, int | None]]
"""artifact -> its bytes, and the time of change of the file that we sent"""


@dataclass
class OpenRun:
    """An open MLflow run, and what it lacks of its run folder."""

    client: Any
    id: str
    status: str
    """as MLflow shows it"""
    backlog: Backlog
    _present: dict[str, Present] = field(default_factory=dict)
    """folder of artifacts -> what is there"""

    def send_lines(self) -> int:
        """Send the lines that MLflow lacks, in batches, each with the new position; return how many."""
        from mlflow.entities import Metric, RunTag

        lines = 0
        while batch := self.backlog.take():
            # MLflow stores an infinity as 1.8e308, which spoils the chart's scale
            metrics = [
                Metric(
                    clean_name(p.name),
                    p.value if math.isfinite(p.value) else math.nan,
                    p.milliseconds,
                    p.step,
                )
                for p in batch.points
            ]
            tags = [RunTag(clean_name(name), position) for name, position in batch.positions.items()]
            for start in range(0, len(metrics), _METRICS_A_CALL):
                last = start + _METRICS_A_CALL >= len(metrics)
                self.client.log_batch(
                    self.id, metrics=metrics[start : start + _METRICS_A_CALL], tags=tags if last else []
                )
            self.backlog.sent()
            lines += batch.lines
        return lines

    def send_files(self) -> int:
        """Send the run's files that MLflow lacks or has in another size; return how many."""
        files = 0
        for place, path in self.backlog.artifacts().items():
            folder = place.rpartition("/")[0]
            found = path.stat()
            present = self._files_in(folder)
            bytes_there, changed = present.get(place, (-1, None))
            if bytes_there != found.st_size or changed not in (None, found.st_mtime_ns):
                self.client.log_artifact(self.id, str(path), folder or None)
                files += 1
            present[place] = found.st_size, found.st_mtime_ns
        return files

    def _files_in(self, folder: str) -> Present:
        """Return what MLflow has in a folder of the run's artifacts; asked once."""
        if folder not in self._present:
            there = self.client.list_artifacts(self.id, folder or None)
            self._present[folder] = {file.path: (file.file_size, None) for file in there}
        return self._present[folder]

    def end(self, status: str, *, milliseconds: int | None = None) -> None:
        """Set the run's status, ended at `milliseconds` since 1970 or now."""
        self.client.set_terminated(self.id, status=status, end_time=milliseconds)
        self.status = status


def open_run(
    folder: Path,
    config: TrackingConfig,
    facts: RunFacts,
    *,
    is_running: bool = True,
    backlog: Backlog | None = None,
) -> OpenRun:
    """Open the folder's MLflow run, or make it, and log the facts; safe to repeat, under `lock_run`.

    Args:
        is_running: show it as RUNNING, whatever it was.
        backlog: what the last run opened by this process had read, so that it need not be read again.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    assert config.uri is not None
    client, experiment = connect(config.uri, config.experiment)
    run = _existing_run(client, folder, experiment)
    if run is None:
        run, backlog = _create_run(client, folder, experiment, config), None
    elif is_running and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    if run.info.run_id != run_id(folder):
        write_atomically(folder / "mlflow_run_id", f"{run.info.run_id}\n".encode())
        backlog = None

    known = run.data.params
    params = {clean_name(name): value[:_PARAM_LENGTH] for name, value in facts.params.items()}
    tags = {**config.tags, **facts.tags}
    parent = run_id(facts.parent) if facts.parent else None
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    # MLflow refuses to change a param: what differs since the run began becomes a tag
    tags |= {
        f"changed.{name}": f"{known[name]} -> {value}"
        for name, value in params.items()
        if known.get(name, value) != value
    }
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(new), _PARAMS_A_CALL):
        client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_A_CALL])
    run_tags = [RunTag(clean_name(name), value[:_TAG_LENGTH]) for name, value in tags.items()]
    for start in range(0, len(run_tags), _PARAMS_A_CALL):
        client.log_batch(run.info.run_id, tags=run_tags[start : start + _PARAMS_A_CALL])
    if facts.datasets:
        inputs = [
            DatasetInput(
                Dataset(data.name, data.digest, "local", json.dumps({"uri": redact(data.source)})),
                [InputTag("mlflow.data.context", data.context)],
            )
            for data in facts.datasets
        ]
        client.log_inputs(run.info.run_id, datasets=inputs)
    status = "RUNNING" if is_running else run.info.status
    return OpenRun(client, run.info.run_id, status, backlog or Backlog(folder, run.data.tags))


def _create_run(client: Any, folder: Path, experiment: str, config: TrackingConfig) -> Any:
    identity = _identity(folder)
    return client.create_run(
        experiment,
        run_name=config.run_name or folder.resolve().name,
        tags={_IDENTITY_TAG: identity} if identity else {},
        start_time=_began(folder),
    )


def connect(uri: str, name: str) -> tuple[Any, str]:
    """Return MLflow's client and the id of the experiment `name`, both made where they do not exist yet."""
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    with _first_use_lock(file):
        client = MlflowClient(tracking_uri=absolute_store(uri))
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return client, experiment.experiment_id
        # beside the database and not in whatever folder the process happens to run in
        place = (file.parent / "mlruns").as_uri() if file else None
        try:
            return client, client.create_experiment(name, artifact_location=place)
        except Exception:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return client, experiment.experiment_id  # another run made it in between


def _existing_run(client: Any, folder: Path, experiment: str) -> Any:
    """Return the run that the folder names, else the one made from this journal, else None.

    The folder names none that this store has when the process died before it wrote the name, and when the folder was
    sent to another store in between.
    """
    from mlflow.exceptions import MlflowException

    known = run_id(folder)
    if known is not None:
        try:
            run = client.get_run(known)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return run
    identity = _identity(folder)
    if identity is None:
        return None
    found = client.search_runs(
        [experiment], filter_string=f"tags.`{_IDENTITY_TAG}` = '{identity}'", max_results=1
    )
    return found[0] if found else None


def _identity(folder: Path) -> str | None:
    """Return what no other run has: the digest of the journal's first line, with its time, host and command."""
    try:
        with (folder / "journal.jsonl").open("rb") as file:
            line = file.readline()
    except OSError:
        return None
    return hashlib.sha256(line).hexdigest()[:32] if line.endswith(b"\n") else None


def _began(folder: Path) -> int | None:
    """Return when the journal's first line was written, in milliseconds since 1970; None for an empty journal."""
    try:
        first = next(journal.entries(folder / "journal.jsonl"), None)
    except OSError:
        return None
    return journal.milliseconds(first[1]) if first else None


def absolute_store(uri: str | None) -> str | None:
    """Return `uri`, of a SQLite store the one that means the same file from every folder."""
    file = sqlite_file(uri) if uri is not None else None
    return f"sqlite:///{file}" if file else uri


def reason_of(error: Exception) -> str:
    """Return an error's class and first line, for a person, without passwords."""
    return f"{type(error).__name__}: {redact(str(error).strip().partition(chr(10))[0])[:300]}"


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, None for every other store."""
    found = re.match(r"sqlite(?:\+pysqlite)?:///(?P<path>[^?]+)$", uri)
    return Path(found["path"]).absolute() if found else None


def lock_run(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time find or make the MLflow run of a run folder."""
    # a file: network file systems lock no folders
    return _locked(folder / ".mlflow.lock", os.O_RDWR | os.O_CREAT)


def _first_use_lock(file: Path | None) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time create the SQLite store: six that began together all failed without it.

    The folder is locked, not a file of its own that would stay behind.
    """
    if file is None:
        return contextlib.nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return _locked(file.parent, os.O_RDONLY)


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[None]:
    """Hold a lock on `path`; where it cannot be locked, go on without."""
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:  # somebody else's folder
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            # explicitly: a data worker that was forked meanwhile has it open as well, and would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
