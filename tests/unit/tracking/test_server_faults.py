"""A real `mlflow server` that is away, dies, is slow or fails: training does not notice, and nothing is lost."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3.util.connection
from mlflow import MlflowClient

from promptmeup.config import Config
from promptmeup.tracking import journal, mlflow_run
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.settings import TrackedDataset, TrackingConfig
from promptmeup.tracking.sync import sync
from promptmeup.tracking.tracker import Tracker
from tests.support.mlflow_server import FaultyProxy, MlflowServer
from tests.unit.tracking.conftest import history, wait_for

STEPS = 300


class Settings(Config):
    tracking: TrackingConfig


def run(
    folder: Path,
    uri: str,
    *,
    between: dict[int, Callable[[], Any]] | None = None,
    close_seconds: float = 0.5,
    datasets: tuple[TrackedDataset, ...] = (),
) -> None:
    """Report STEPS steps as training does; `between` holds what happens before some of them."""
    config = Settings(tracking=TrackingConfig(uri=uri, flush_seconds=0.05, close_seconds=close_seconds))
    with Tracker(folder, config=config.tracking, total_steps=STEPS) as tracker:
        tracker.start(config=config, environment=environment(command=["pretrain.py"]), datasets=datasets)
        for step in range(1, STEPS + 1):
            (between or {}).get(step, lambda: None)()
            tracker.step(step, {"loss": float(step)})


EVERY_STEP = [(step, float(step)) for step in range(1, STEPS + 1)]


def assert_journal_is_whole(folder: Path) -> None:
    steps = journal.metrics(folder / "journal.jsonl")
    assert [(step, values["loss"]) for step, values in steps.items()] == EVERY_STEP
    assert journal.read(folder / "journal.jsonl")[-1]["status"] == "FINISHED"


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the threads that open a connection."""
    names: set[str] = set()
    connect = urllib3.util.connection.create_connection

    def noted(*arguments: Any, **named: Any) -> Any:
        names.add(threading.current_thread().name)
        return connect(*arguments, **named)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", noted)
    return names


def test_healthy_server_has_everything(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "gallery.html"
    page.write_text("<p>photos")
    folder = tmp_path / "run"
    dataset = TrackedDataset("news/train", "0123456789abcdef", "packed/news/train")
    config = Settings(tracking=TrackingConfig(uri=server.url, flush_seconds=0.05, close_seconds=60))
    for attempt in range(2):  # the second goes on where the first ended
        with Tracker(folder, config=config.tracking, total_steps=STEPS) as tracker:
            where = environment(command=["pretrain.py"])
            tracker.start(config=config, environment=where, step=attempt, datasets=[dataset])
            tracker.step(attempt + 1, {"loss": 1.0})
            tracker.add_artifact(page)
    client = MlflowClient(tracking_uri=server.url)
    found = client.get_run(mlflow_run.run_id(folder) or "")
    assert found.info.status == "FINISHED"
    assert history(client, folder, "loss") == [(1, 1.0), (2, 1.0)]
    ((given,),) = [[(i.dataset.name, i.dataset.digest)] for i in found.inputs.dataset_inputs]
    assert given == ("news/train", "0123456789abcdef")
    git = where["git"]
    assert (git is None) or found.data.tags["mlflow.source.git.commit"] == git["commit"]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.yaml", "environment.json", "environment-2.json", "curves.png", "gallery.html"}
    assert sync(folder).startswith("nothing was missing")
    assert "View run" not in capsys.readouterr().out  # MLflow's own chatter


def test_unreachable_at_start(
    sqlite_server: MlflowServer, connecting: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        run(tmp_path / "run", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert "python -m promptmeup.tracking.sync" in capsys.readouterr().out
    assert_journal_is_whole(tmp_path / "run")
    assert connecting <= {"mlflow"}
    said = sync(tmp_path / "run", uri=sqlite_server.url)
    assert "300 lines and 3 files" in said and "FINISHED" in said
    assert history(MlflowClient(sqlite_server.url), tmp_path / "run", "loss") == EVERY_STEP


def test_killed_and_restarted(server: MlflowServer, connecting: set[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    client = MlflowClient(server.url)

    def has_some() -> bool:
        return mlflow_run.run_id(folder) is not None and len(history(client, folder, "loss")) > 50

    try:
        between = {101: lambda: wait_for(has_some), 102: server.kill, 201: lambda: server.start(wait=False)}
        run(folder, server.url, between=between)
        assert_journal_is_whole(folder)
    finally:
        server.wait()
    assert connecting - {"MainThread"} == {"mlflow"}  # the main thread's are the test's own
    sync(folder)
    assert history(client, folder, "loss") == EVERY_STEP
    assert client.get_run(mlflow_run.run_id(folder) or "").info.status == "FINISHED"
    assert "nothing was missing" in sync(folder)


@pytest.mark.parametrize("fault", ["500", "slow", "hang", "lost"])
def test_fault_from_the_middle_on(
    fault: str, proxy: FaultyProxy, connecting: set[str], tmp_path: Path
) -> None:
    """A server that hangs for good lets the whole run pass: nothing in it waits for an answer."""
    folder = tmp_path / "run"
    begin = {
        100: lambda: wait_for(lambda: mlflow_run.run_id(folder) is not None),
        101: lambda: setattr(proxy, "fault", fault),
        200: lambda: wait_for(lambda: proxy.requests[fault] > 0),
    }
    run(folder, proxy.url, between=begin)
    assert_journal_is_whole(folder)
    assert connecting == {"mlflow"}
    proxy.fault = None
    sync(folder)
    client = MlflowClient(proxy.url)
    assert history(client, folder, "loss") == EVERY_STEP
    found = client.get_run(mlflow_run.run_id(folder) or "")
    assert found.info.status == "FINISHED"
    assert {"config.yaml", "curves.png"} <= {file.path for file in client.list_artifacts(found.info.run_id)}


def test_store_that_refuses_files_gets_metrics_at_their_pace(
    proxy: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = "files"
    folder = tmp_path / "run"
    client = MlflowClient(proxy.url)

    def has_the_last() -> bool:
        return mlflow_run.run_id(folder) is not None and len(history(client, folder, "loss")) >= STEPS - 1

    run(folder, proxy.url, between={STEPS: lambda: wait_for(has_the_last)}, close_seconds=60)
    assert history(client, folder, "loss") == EVERY_STEP
    assert client.get_run(mlflow_run.run_id(folder) or "").info.status == "FINISHED"
    out = capsys.readouterr().out
    assert out.count("to take files") == 1
    assert "did not get everything" in out
    proxy.fault = None
    assert "0 lines and 3 files" in sync(folder)
