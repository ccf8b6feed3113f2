"""What a person sets about tracking, and the facts of a run that a tracker shows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from promptmeup.config import Config
from promptmeup.tracking.provenance import redact


def refuse_folder(uri: str | None) -> str | None:
    """Return the address of a store as it is.

    Raises:
        ValueError: it is a folder.
    """
    if uri is not None and "://" not in uri and not uri.startswith("databricks"):
        raise ValueError(
            "MLflow writes no plain folders any more; use sqlite:///mlflow.db, the address of a "
            "server such as http://host:5000, or null to switch MLflow off"
        )
    return uri


class TrackingConfig(Config):
    """Where metrics go besides the journal, and how often.

    Credentials belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; those in `uri` work too
    and are removed from everything that is written.
    """

    uri: str | None = "sqlite:///mlflow.db"
    """MLflow's store or server; null switches MLflow off."""
    experiment: str = Field(default="promptmeup", min_length=1)
    run_name: str | None = None
    """default: the run folder's name"""
    tags: dict[str, str] = Field(default_factory=dict)
    log_every: int = Field(default=10, gt=0)
    """steps between two lines of the journal"""
    console_seconds: float = Field(default=10.0, gt=0)
    """seconds between two lines of progress in a log"""
    flush_seconds: float = Field(default=5.0, gt=0)
    """seconds between two batches to MLflow"""
    close_seconds: float = Field(default=30.0, gt=0)
    """seconds that the end of a run waits for MLflow"""
    system_seconds: float = Field(default=10.0, ge=0)
    """seconds between two samples of each node's CPUs, memory, disk, network and GPUs; 0: none"""

    _uri = field_validator("uri")(refuse_folder)


@dataclass(frozen=True)
class TrackedDataset:
    """A packed split as an input of the run; `digest` is the manifest's fingerprint."""

    name: str
    digest: str
    source: str
    """path or URL of the split"""
    context: str = "training"


@dataclass(frozen=True)
class RunFacts:
    """What MLflow shows beside the curves."""

    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[TrackedDataset] = ()
    parent: Path | None = None
    """run folder of the pre-training, for a fine-tuning run"""


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return {"optim.lr": "0.001", ...} of a nested configuration; lists as JSON, credentials removed."""
    flat: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{name}.")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            flat[prefix + name] = redact(text)
    return flat
