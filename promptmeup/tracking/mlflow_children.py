"""Results as MLflow runs below a parent run; each is there once, however often it is sent and whatever is killed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmeup.config import fingerprint
from promptmeup.shard_format import write_json
from promptmeup.tracking.backlog import clean_name
from promptmeup.tracking.mlflow_run import absolute_store, connect, import_mlflow

NOTED = "mlflow.json"
"""in the folder: what was sent where"""
_TAG, _PARENT_TAG = "promptmeup.child", "promptmeup.parent"


@dataclass(frozen=True)
class Child:
    """A result; another `identity` under the same key takes the place of the earlier one."""

    key: str
    identity: str
    name: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()


class Children:
    """What of a folder is in MLflow; one process at a time, see `lock_run`."""

    def __init__(self, folder: Path, *, uri: str, experiment: str) -> None:
        self._folder, self._uri, self._experiment = folder, uri, experiment
        self._noted: dict[str, Any] = {"store": fingerprint([absolute_store(uri), experiment]), "runs": {}}
        try:
            noted = json.loads((folder / NOTED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if noted["store"] == self._noted["store"]:
            self._noted = noted

    def has(self, key: str, identity: str) -> bool:
        """Return whether the child was sent."""
        return bool(self._noted["runs"].get(key, {}).get("identity") == identity)

    def send(self, children: Sequence[Child], *, name: str, note: str) -> None:
        """Send all of `children`, below the run `name`.

        Raises:
            Exception: whatever MLflow raises; those that it took are noted.
        """
        import_mlflow(self._uri)
        client, experiment = connect(self._uri, self._experiment)
        own = fingerprint([str(self._folder.absolute())])
        parent = _find(client, experiment, _PARENT_TAG, own)
        if not parent:
            tags = {_PARENT_TAG: own, "mlflow.runName": name, "mlflow.note.content": note}
            parent = [client.create_run(experiment, tags=tags).info.run_id]
            client.set_terminated(parent[0])
        for child in children:
            # of an earlier identity, or left by a call that was killed
            tag = fingerprint([own, child.key])
            for stale in _find(client, experiment, _TAG, tag):
                client.delete_run(stale)
            tags = {_TAG: tag, "mlflow.runName": child.name, "mlflow.parentRunId": parent[0]}
            run = _create(client, experiment, child, tags)
            self._noted["runs"][child.key] = {"identity": child.identity, "run": run}
            write_json(self._folder / NOTED, self._noted)


def _find(client: Any, experiment: str, tag: str, value: str) -> list[str]:
    found = client.search_runs([experiment], filter_string=f"tags.`{tag}` = '{value}'", max_results=100)
    return [run.info.run_id for run in found]


def _create(client: Any, experiment: str, child: Child, tags: dict[str, str]) -> str:
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment, tags=tags)
    number = str(run.info.run_id)
    metrics = [
        Metric(clean_name(name), value, run.info.start_time, 0) for name, value in child.metrics.items()
    ]
    params = [Param(clean_name(name), value) for name, value in child.params.items()]
    client.log_batch(number, metrics=metrics, params=params)
    for file in child.files:
        client.log_artifact(number, str(file))
    client.set_terminated(number)
    return number
