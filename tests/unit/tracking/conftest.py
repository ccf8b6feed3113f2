"""One SQLite store for the whole package: creating it takes about five seconds. Real servers start in some ten."""

import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from promptmeup.tracking import mlflow_run
from promptmeup.tracking.mlflow import MlflowSink
from promptmeup.tracking.settings import RunFacts, TrackingConfig
from tests.support.mlflow_server import (
    FaultyProxy,
    MlflowServer,
    faulty_proxy,
    mlflow_server,
    postgres,
    postgres_programs,
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client sleeps between tries, and we wait for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


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


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("sqlite_server")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs Debian's postgresql")
    with (
        postgres(tmp_path_factory.mktemp("postgres"), programs) as backend,
        mlflow_server(tmp_path_factory.mktemp("postgres_server"), backend=backend) as server,
    ):
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> MlflowServer:
    """A real `mlflow server`, once with each database."""
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def proxy(sqlite_server: MlflowServer) -> Iterator[FaultyProxy]:
    """Stands before the server with SQLite, and has faults on demand."""
    with faulty_proxy(urllib.parse.urlsplit(sqlite_server.url).port or 0) as proxy:
        yield proxy


def history(client: MlflowClient, folder: Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of everything MLflow has of one metric, in order."""
    run = mlflow_run.run_id(folder)
    assert run is not None
    return sorted((m.step, m.value) for m in client.get_metric_history(run, name))


def wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
