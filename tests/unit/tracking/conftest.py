"""One SQLite store for the whole package: creating it takes about five seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from promptmeup.tracking.mlflow import MlflowSink
from promptmeup.tracking.settings import RunFacts, TrackingConfig


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="session")
def client(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def sink(store: str, tmp_path: Path) -> Callable[..., MlflowSink]:
    """Return a maker of sinks for tmp_path that flush at once."""

    def make(*, uri: str = store, facts: RunFacts | None = None, say: Any = print) -> MlflowSink:
        config = TrackingConfig(uri=uri, flush_seconds=0.05, tags={"team": "news"})
        return MlflowSink(tmp_path, config=config, facts=facts or RunFacts(), say=say)

    return make
