"""One MLflow run: found or made, its facts, and the journal's lines that it lacks."""

import contextlib
import fcntl
import importlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from promptmeup.shard_format import write_atomically
from promptmeup.tracking import journal
from promptmeup.tracking.provenance import redact
from promptmeup.tracking.settings import RunFacts, TrackingConfig

_POSITION_TAG = "promptmeup.journal_bytes"
_METRICS_A_BATCH = 900  # MLflow takes 1000 metrics, params and tags together
_PARAMS_A_BATCH = 100
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_NAME_LENGTH = 250
_ENVIRONMENT = {
    # MLflow's own 7 retries with growing pauses take minutes a call when the server is away
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


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


@dataclass
class OpenRun:
    """An open MLflow run and how far it has the journal."""

    client: Any
    id: str
    sent_bytes: int
    """MLflow has the journal up to here"""
    read_bytes: int = 0
    highest: dict[str, int] = field(default_factory=dict)
    """event -> largest step that MLflow has"""
    repeated: dict[str, int] = field(default_factory=dict)
    """event -> largest step that MLflow had when the run was resumed: up to there it is a repetition"""

    def send_lines(self, path: Path) -> None:
        """Send what `path` holds beyond `sent_bytes`, in batches; the new position travels with each."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for entry in self._new_entries(path):
            time = int(datetime.fromisoformat(entry["time"]).timestamp() * 1000)
            prefix = "evaluation/" if entry["event"] == "evaluation" else ""
            for name, value in journal.values(entry).items():
                # MLflow stores an infinity as 1.8e308, which spoils the chart's scale
                number = value if math.isfinite(value) else math.nan
                batch.append(Metric(_name(prefix + name), number, time, entry["step"]))
            if len(batch) >= _METRICS_A_BATCH:
                self._send(batch)
                batch = []
        self._send(batch)

    def _new_entries(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the metric entries that MLflow lacks, from where the last call stopped."""
        for end, entry in journal.entries(path, start=self.read_bytes):
            self.read_bytes = end
            event, step = entry["event"], entry["step"]
            if event == "resume":
                self.repeated = dict(self.highest)
            elif event in journal.METRIC_EVENTS and step > self.repeated.get(event, -1):
                self.highest[event] = max(step, self.highest.get(event, -1))
                if end > self.sent_bytes:
                    yield entry

    def _send(self, batch: Sequence[Any]) -> None:
        from mlflow.entities import RunTag

        for start in range(0, len(batch), _METRICS_A_BATCH):
            last = start + _METRICS_A_BATCH >= len(batch)
            tags = [RunTag(_POSITION_TAG, str(self.read_bytes))] if last else []
            self.client.log_batch(self.id, metrics=batch[start : start + _METRICS_A_BATCH], tags=tags)


def open_run(folder: Path, config: TrackingConfig, facts: RunFacts) -> OpenRun:
    """Open the folder's MLflow run, or make it, and log the facts; safe to repeat."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    client, experiment = _connect(config)
    run = _existing_run(client, folder)
    if run is None:
        parent = {"mlflow.parentRunId": facts.parent_run_id} if facts.parent_run_id else {}
        run = client.create_run(experiment, run_name=config.run_name or folder.resolve().name, tags=parent)
        write_atomically(folder / "mlflow_run_id", f"{run.info.run_id}\n".encode())
    elif run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")

    known = run.data.params
    params = {_name(name): value[:_PARAM_LENGTH] for name, value in facts.params.items()}
    tags = {**config.tags, **facts.tags}
    # MLflow refuses to change a param: what differs since the run began becomes a tag
    tags |= {
        f"changed.{name}": f"{known[name]} -> {value}"
        for name, value in params.items()
        if known.get(name, value) != value
    }
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(new), _PARAMS_A_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_A_BATCH])
    run_tags = [RunTag(_name(name), value[:_TAG_LENGTH]) for name, value in tags.items()]
    client.log_batch(run.info.run_id, tags=run_tags[:_PARAMS_A_BATCH])
    if facts.datasets:
        inputs = [
            DatasetInput(
                Dataset(data.name, data.digest, "local", json.dumps({"uri": redact(data.source)})),
                [InputTag("mlflow.data.context", data.context)],
            )
            for data in facts.datasets
        ]
        client.log_inputs(run.info.run_id, datasets=inputs)
    return OpenRun(client, run.info.run_id, int(run.data.tags.get(_POSITION_TAG, 0)))


def _connect(config: TrackingConfig) -> tuple[Any, str]:
    """Return MLflow's client and the experiment's id, both made where they do not exist yet."""
    from mlflow import MlflowClient

    assert config.uri is not None
    file = sqlite_file(config.uri)
    with _first_use_lock(file):
        client = MlflowClient(tracking_uri=f"sqlite:///{file}" if file else config.uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        # beside the database and not in whatever folder the process happens to run in
        place = (file.parent / "mlruns").as_uri() if file else None
        try:
            return client, client.create_experiment(config.experiment, artifact_location=place)
        except Exception:
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise
            return client, experiment.experiment_id  # another run made it in between


def _existing_run(client: Any, folder: Path) -> Any:
    """Return the run that the folder names, or None where there is none (any more)."""
    from mlflow.exceptions import MlflowException

    known = run_id(folder)
    if known is None:
        return None
    try:
        run = client.get_run(known)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None  # another or a new store: the whole journal goes into a new run
        raise
    return run if run.info.lifecycle_stage == "active" else None


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of a SQLite store's file, None for every other store."""
    found = re.match(r"sqlite(?:\+pysqlite)?:///(?P<path>[^?]+)$", uri)
    return Path(found["path"]).absolute() if found else None


@contextlib.contextmanager
def _first_use_lock(file: Path | None) -> Iterator[None]:
    """Let one process at a time create the SQLite store: six that began together all failed without it.

    The folder is locked, not a file of its own that would stay behind. A file system without locks goes on without.
    """
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _name(text: str) -> str:
    """Return `text` with what MLflow refuses in a name replaced."""
    return re.sub(r"[^\w./ :-]", "_", text)[:_NAME_LENGTH]
