"""Against a real SQLite store; what a dead one may cost is measured, not assumed."""

import fcntl
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from promptmeup.tracking import mlflow_run
from promptmeup.tracking.journal import Journal
from promptmeup.tracking.mlflow import MlflowSink
from promptmeup.tracking.settings import RunFacts, TrackedDataset, TrackingConfig, flatten
from tests.unit.tracking.conftest import history, wait_for

MakeSink = Callable[..., MlflowSink]


def test_run_holds_facts_metrics_files_dataset_and_status(
    sink: MakeSink, client: MlflowClient, tmp_path: Path
) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.write("start", step=0)
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent/mlflow_run_id").write_text("0" * 32 + "\n")
    facts = RunFacts(
        params=flatten({"optim": {"lr": 0.1, "betas": [0.9, 0.98]}, "uri": "http://a:b@c", "l<1>": None}),
        tags={"host": "node1"},
        datasets=[TrackedDataset("train", "0123456789abcdef", "packed/train")],
        parent=tmp_path / "parent",
    )
    made = sink(facts=facts)
    book.write("step", step=1, **{"loss": 2.0, "loss/image_text": math.inf})
    book.write("evaluation", step=1, r1=0.5)
    book.write("evaluation", step=1, r5=0.75)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "result.json").write_text("{}\n")
    book.write("artifact", step=1, path="result.json")
    book.write("artifact", step=1, path="never_written.png")
    assert made.close(status="KILLED", timeout=60)

    run = client.get_run(mlflow_run.run_id(tmp_path) or "")
    assert run.info.status == "KILLED"
    assert run.info.run_name == tmp_path.name
    assert run.data.params == {
        "optim.lr": "0.1",
        "optim.betas": "[0.9, 0.98]",
        "uri": "http://***@c",
        "l_1_": "null",
    }
    tags = {"team": "news", "host": "node1", "mlflow.parentRunId": "0" * 32}
    assert tags.items() <= run.data.tags.items()
    assert math.isnan(run.data.metrics.pop("loss/image_text"))
    assert run.data.metrics == {"loss": 2.0, "evaluation/r1": 0.5, "evaluation/r5": 0.75}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml", "result.json"]
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["0123456789abcdef"]


def test_resumed_run_is_one_run_and_has_every_step_once(
    sink: MakeSink, client: MlflowClient, tmp_path: Path
) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    book.write("start", step=0)
    first = sink(facts=RunFacts(params={"world_size": "8", "seed": "1"}))
    for step in range(1, 51):
        book.write("step", step=step, loss=float(step))
    assert first.close(status="FAILED", timeout=60)
    for step in range(51, 58):
        book.write("step", step=step, loss=float(step))  # killed before MLflow got these
    run = mlflow_run.run_id(tmp_path)

    book.write("resume", step=40)
    second = sink(facts=RunFacts(params={"world_size": "4", "seed": "1", "new": "x"}))
    for step in range(41, 71):
        book.write("step", step=step, loss=float(step))
    assert second.close(status="FINISHED", timeout=60)

    assert mlflow_run.run_id(tmp_path) == run
    assert history(client, tmp_path, "loss") == [(step, float(step)) for step in range(1, 71)]
    found = client.get_run(run or "")
    assert found.info.status == "FINISHED"
    assert found.data.params == {"world_size": "8", "seed": "1", "new": "x"}
    assert found.data.tags["changed.world_size"] == "8 -> 4"


def test_position_lost_after_a_batch_makes_no_duplicates(
    sink: MakeSink, client: MlflowClient, tmp_path: Path
) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    for step in range(1, 6):
        book.write("step", step=step, loss=float(step))
    assert sink().close(status="FAILED", timeout=60)
    run = mlflow_run.run_id(tmp_path) or ""
    client.set_tag(run, "promptmeup.journal_bytes", "0")  # as if killed between the batch and its tag
    assert sink().close(status="FINISHED", timeout=60)
    assert len(history(client, tmp_path, "loss")) == 5


def test_deleted_run_is_made_again_from_the_journal(
    sink: MakeSink, client: MlflowClient, tmp_path: Path
) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    for step in range(1, 1201):  # two batches
        book.write("step", step=step, loss=float(step))
    assert sink().close(status="FAILED", timeout=60)
    first = mlflow_run.run_id(tmp_path) or ""
    client.delete_run(first)
    assert sink().close(status="FINISHED", timeout=60)
    assert mlflow_run.run_id(tmp_path) != first
    assert history(client, tmp_path, "loss") == [(step, float(step)) for step in range(1, 1201)]


def test_outage_costs_no_step_and_warns_once(
    sink: MakeSink, store: str, client: MlflowClient, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = tmp_path / "store"
    folder.write_text("a file where the store's folder should be")
    book = Journal(tmp_path / "journal.jsonl")
    made = sink(uri=f"sqlite:///{folder}/mlflow.db", say=said.append)
    began = time.perf_counter()
    for step in range(1, 3001):
        book.write("step", step=step, loss=float(step))
    assert time.perf_counter() - began < 3.0  # about 20 us each; a queue or a lock would show
    wait_for(lambda: len(said) == 1)
    time.sleep(0.5)
    assert len(said) == 1
    assert "failed 3 times" in said[0]

    folder.unlink()
    folder.symlink_to(Path(store.removeprefix("sqlite:///")).parent)  # the store is back
    assert made.close(status="FINISHED", timeout=60)
    assert len(history(client, tmp_path, "loss")) == 3000
    assert len(said) == 2
    assert "answers again" in said[1]


def test_dead_server_never_blocks_and_close_keeps_its_time(sink: MakeSink, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        port = closed.getsockname()[1]
        book = Journal(tmp_path / "journal.jsonl")
        made = sink(uri=f"http://127.0.0.1:{port}")
        book.write("step", step=1, loss=1.0)
        began = time.perf_counter()
        assert not made.close(status="FINISHED", timeout=1.0)
        assert time.perf_counter() - began < 3.0


def test_server_that_never_answers_keeps_closing_in_time(sink: MakeSink, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        Journal(tmp_path / "journal.jsonl").write("step", step=1, loss=1.0)
        made = sink(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        assert not made.close(status="KILLED", timeout=1.0)
        assert time.perf_counter() - began < 3.0


PROCESS = """
import os, signal, sys, time
from pathlib import Path
from promptmeup.tracking.mlflow import MlflowSink
from promptmeup.tracking.settings import RunFacts, TrackingConfig
folder = Path(sys.argv[1])
(folder / "journal.jsonl").touch()
config = TrackingConfig(uri=f"sqlite:///{sys.argv[2]}", flush_seconds=0.1)
sink = MlflowSink(folder, config=config, facts=RunFacts(), say=print)
time.sleep(0.3)
if os.fork() == 0:  # a data worker
    signal.alarm(10)
    import mlflow.store.tracking.sqlalchemy_store  # hangs when the parent's thread was importing it
    os._exit(0)
print("worker", os.wait()[1], flush=True)
print("closed", sink.close(status="FINISHED", timeout=100))
"""


def test_worker_forked_while_mlflow_is_imported_does_not_hang(store: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), store.removeprefix("sqlite:///")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "worker 0\nclosed True\n", done.stderr
    assert done.stderr == ""  # none of MLflow's and alembic's chatter


def test_new_store_is_made_by_one_process_at_a_time(sink: MakeSink, tmp_path: Path) -> None:
    """Without a lock, of six runs that began together all six failed on half-made tables."""
    folder = tmp_path / "store"
    folder.mkdir()
    Journal(tmp_path / "journal.jsonl").write("start", step=0)
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    made = sink(uri=f"sqlite:///{folder}/new.db")
    time.sleep(1.0)
    assert list(folder.iterdir()) == []
    os.close(other)
    assert made.close(status="FINISHED", timeout=60)
    assert (folder / "new.db").exists()


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/tmp/mlruns"])
def test_folder_as_store_is_refused_with_the_way_out(uri: str) -> None:
    with pytest.raises(ValidationError, match=r"sqlite:///mlflow\.db"):
        TrackingConfig(uri=uri)
