"""`python -m promptmeup.tracking.sync`, and runs that died without a word."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from promptmeup.config import Config
from promptmeup.errors import TrackingError
from promptmeup.tracking import mlflow_run
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.settings import TrackedDataset, TrackingConfig
from promptmeup.tracking.sync import main, sync
from promptmeup.tracking.tracker import Tracker
from tests.unit.tracking.conftest import history, wait_for


class Settings(Config):
    lr: float = 0.1
    tracking: TrackingConfig


def attempt(
    folder: Path, uri: str | None, steps: range, *, finish: str | None = "FINISHED", **start: Any
) -> Tracker:
    """Report `steps`; without `finish` the tracker stays open."""
    config = Settings(tracking=TrackingConfig(uri=uri, flush_seconds=0.05, close_seconds=60))
    tracker = Tracker(folder, config=config.tracking, total_steps=100)
    where = environment(command=["pretrain.py"], folder=folder)
    tracker.start(config=config, environment=where, step=steps.start - 1, **start)
    for step in steps:
        tracker.step(step, {"loss": float(step)})
    if finish is not None:
        tracker.finish(finish)  # type: ignore[arg-type]
    return tracker


def status(client: MlflowClient, folder: Path) -> str:
    return str(client.get_run(mlflow_run.run_id(folder) or "").info.status)


def steps_of(client: MlflowClient, folder: Path) -> list[int]:
    return [step for step, _ in history(client, folder, "loss")]


def test_run_without_mlflow_is_sent_whole_and_twice_is_once(
    store: str, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    data = TrackedDataset("news/train", "f" * 16, "https://me:secret@host/news/train")
    tracker = attempt(folder, None, range(1, 31), finish=None, datasets=[data])
    (folder / "result.json").write_text("{}")
    tracker.add_artifact(folder / "result.json")
    tracker.finish("KILLED")
    assert "secret" not in (folder / "journal.jsonl").read_text()
    with pytest.raises(TrackingError, match=r"tracking.uri=null: say where it should go with --uri"):
        sync(folder)

    capsys.readouterr()
    assert main([str(folder), "--uri", store]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    run = mlflow_run.run_id(folder)
    assert line == f"{folder}: 30 lines and 4 files -> run {run} at {store}, KILLED"
    assert main([str(folder), "--uri", store]) == 0
    assert capsys.readouterr().out == f"{folder}: nothing was missing -> run {run} at {store}, KILLED\n"

    assert steps_of(client, folder) == list(range(1, 31))
    found = client.get_run(run or "")
    assert found.data.params["lr"] == "0.1"
    assert found.data.tags["mlflow.source.name"] == "pretrain.py"
    assert [i.dataset.digest for i in found.inputs.dataset_inputs] == ["f" * 16]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.yaml", "environment.json", "curves.png", "result.json"}
    assert 0 <= found.info.end_time - found.info.start_time < 60_000  # the run's own, not the sync's


def test_files_of_one_name_keep_apart(store: str, client: MlflowClient, tmp_path: Path) -> None:
    """Galleries of several splits, of their parent, and of a corpus that is called the same elsewhere."""
    folder = tmp_path / "run"
    tracker = attempt(folder, None, range(1, 3), finish=None)
    pages = [tmp_path / place / "gallery.html" for place in ("a/packed/train", "a/packed", "b/packed/train")]
    for number, page in enumerate(pages):
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("photo " * (number + 1))
        tracker.add_artifact(page)
    tracker.finish()
    assert "6 files" in sync(folder, uri=store)
    run = mlflow_run.run_id(folder) or ""
    expected = ["gallery.html", "packed/gallery.html", "train/gallery.html"]
    for place, page in zip(expected, pages, strict=True):
        (found,) = (
            file
            for file in client.list_artifacts(run, place.rpartition("/")[0] or None)
            if file.path == place
        )
        assert found.file_size == page.stat().st_size
    assert "nothing was missing" in sync(folder, uri=store)


def test_help_names_the_folders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "RUN_DIR [RUN_DIR ...]" in capsys.readouterr().out


def test_two_syncs_at_once_make_one_run(store: str, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt(folder, None, range(1, 1001))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sync(folder, uri=store), range(4)))
    assert steps_of(client, folder) == list(range(1, 1001))
    runs = client.search_runs(
        [client.get_experiment_by_name("promptmeup").experiment_id],  # type: ignore[union-attr]
        filter_string=f"tags.run_folder = '{folder.resolve()}'",
    )
    assert len(runs) == 1


def test_running_run_gets_its_steps_and_keeps_its_status(
    store: str, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    tracker = attempt(folder, store, range(1, 11), finish=None)
    assert "still running" in sync(folder)
    assert status(client, folder) == "RUNNING"
    tracker.step(11, {"loss": 11.0})
    tracker.finish()
    assert steps_of(client, folder) == list(range(1, 12))
    assert status(client, folder) == "FINISHED"


def test_repeated_steps_are_sent_once_and_new_ones_between_them_too(
    store: str, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    attempt(folder, None, range(1, 11), finish="FAILED")
    tracker = attempt(folder, None, range(5, 5), finish=None)
    for step in (6, 8, 10, 12):
        tracker.step(step, {"loss": float(step), "seen": 1.0})
    tracker.finish()
    sync(folder, uri=store)
    assert steps_of(client, folder) == [*range(1, 11), 12]
    # a metric that the first attempt did not write is no repetition
    assert [step for step, _ in history(client, folder, "seen")] == [6, 8, 10, 12]


def test_run_whose_name_was_never_written_is_found_again(
    store: str, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    attempt(folder, store, range(1, 6))
    run = mlflow_run.run_id(folder)
    (folder / "mlflow_run_id").unlink()  # killed between the making of the run and this file
    sync(folder)
    assert mlflow_run.run_id(folder) == run
    assert steps_of(client, folder) == list(range(1, 6))


def test_another_store_and_back(store: str, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    attempt(folder, store, range(1, 6))
    run = mlflow_run.run_id(folder)
    other = f"sqlite:///{tmp_path}/other.db"
    assert "5 lines" in sync(folder, uri=other)
    assert steps_of(MlflowClient(other), folder) == list(range(1, 6))
    assert "nothing was missing" in sync(folder)
    assert mlflow_run.run_id(folder) == run
    assert steps_of(client, folder) == list(range(1, 6))


def test_seeds_of_a_fine_tuning_are_sent_below_their_parent(
    store: str, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, tuned = tmp_path / "student", tmp_path / "tuned"
    attempt(parent, None, range(1, 3))
    for seed in (1, 2):
        attempt(tuned / f"seed-{seed}", None, range(1, 4), parent=parent)
    capsys.readouterr()
    assert main([str(parent), str(tuned), "--uri", store]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    for seed in (1, 2):
        found = client.get_run(mlflow_run.run_id(tuned / f"seed-{seed}") or "")
        assert found.data.tags["mlflow.parentRunId"] == mlflow_run.run_id(parent)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: None, "holds no run"),
        (lambda run: (run / "journal.jsonl").write_text("half a li"), "has no start"),
        (lambda run: attempt(run, None, range(1, 2)) and (run / "config.yaml").unlink(), "config.yaml"),
    ],
)
def test_folders_that_say_too_little(
    prepare: Callable[[Path], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    try:
        code = main([str(tmp_path), "--uri", f"sqlite:///{tmp_path}/x.db"])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 1
    assert message in capsys.readouterr().err


def test_stores_that_cannot_be_meant(tmp_path: Path) -> None:
    attempt(tmp_path / "run", None, range(1, 2))
    with pytest.raises(TrackingError, match="MLflow writes no plain folders"):
        sync(tmp_path / "run", uri="mlruns")
    gone = tmp_path / "gone"
    gone.mkdir()
    text = (tmp_path / "run/journal.jsonl").read_text()
    for folder, uri in (("moved", f"sqlite:///{gone}/mlflow.db"), ("secret", "postgresql://***@host/db")):
        (tmp_path / "run").joinpath("journal.jsonl").write_text(
            text.replace('"store": null', f'"store": "{uri}"')
        )
        with pytest.raises(TrackingError, match="--uri URI"):
            sync(tmp_path / "run")
        assert folder
    assert not list(gone.iterdir())


PROCESS = """
import ctypes, sys, time
from pathlib import Path
from promptmeup.config import Config
from promptmeup.tracking.settings import TrackingConfig
from promptmeup.tracking.signal_watch import SignalWatch
from promptmeup.tracking.tracker import Tracker
from promptmeup.training.signals import StopFlag

class Settings(Config):
    tracking: TrackingConfig

folder, store, first, how = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
config = Settings(tracking=TrackingConfig(uri=store, flush_seconds=0.05, close_seconds=60))
stop = StopFlag()
watch = SignalWatch(lambda name: tracker.told_to_stop(name))
with Tracker(folder, config=config.tracking, total_steps=20) as tracker:
    tracker.start(config=config, environment={"host": __import__("socket").gethostname()}, step=first - 1)
    for step in range(first, first + 10):
        tracker.step(step, {"loss": float(step)})
    print("ready", flush=True)
    if how == "hang":  # as in a collective whose other ranks are gone: no Python code runs here any more
        mutex = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)
    while True:  # Ctrl-C twice gets out
        time.sleep(0.05)
"""


def start(folder: Path, store: str, first: int, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, str(folder), store, str(first), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_ready(process: "subprocess.Popen[str]", client: MlflowClient, folder: Path, steps: int) -> None:
    assert process.stdout
    while "ready" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    wait_for(lambda: mlflow_run.run_id(folder) is not None and len(steps_of(client, folder)) == steps)


def test_killed_run_is_mended_by_sync_and_by_the_next_start(
    store: str, client: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(folder, store, 1, "wait")
    wait_ready(process, client, folder, 10)
    assert "still running" in sync(folder)
    process.kill()
    process.communicate()
    assert status(client, folder) == "RUNNING"  # nobody could say anything
    assert sync(folder).endswith("FAILED (its process died without a word)")
    assert status(client, folder) == "FAILED"

    attempt(folder, store, range(9, 21))
    assert status(client, folder) == "FINISHED"
    assert steps_of(client, folder) == list(range(1, 21))
    assert "nothing was missing" in sync(folder)


def test_signal_reaches_mlflow_while_training_hangs(store: str, client: MlflowClient, tmp_path: Path) -> None:
    """As when another rank dies: the launcher sends SIGTERM, and SIGKILL soon after."""
    folder = tmp_path / "run"
    process = start(folder, store, 1, "hang")
    wait_ready(process, client, folder, 10)
    process.terminate()
    wait_for(lambda: status(client, folder) == "KILLED")
    process.terminate()  # a second one changes nothing
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert sync(folder).endswith("KILLED")


def test_second_ctrl_c_gets_out_as_killed(store: str, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, store, 1, "wait")
    wait_ready(process, client, folder, 10)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: status(client, folder) == "KILLED")  # at once; the loop would save and end now
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert status(client, folder) == "KILLED"
    assert steps_of(client, folder) == list(range(1, 11))


@pytest.mark.parametrize(
    ("code", "expected"), [(None, "FINISHED"), (0, "FINISHED"), (3, "FAILED"), ("no", "FAILED")]
)
def test_exits_are_told(
    code: int | str | None, expected: str, store: str, client: MlflowClient, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit), attempt(tmp_path, store, range(1, 3), finish=None):
        sys.exit(code)
    assert status(client, tmp_path) == expected


def test_worker_that_outlives_its_run_does_not_make_it_look_alive(tmp_path: Path) -> None:
    """It has the journal open as well; closing unlocks it explicitly."""
    from promptmeup.tracking import journal

    tracker = attempt(tmp_path, None, range(1, 2), finish=None)
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    assert journal.is_being_written(tmp_path / "journal.jsonl")
    tracker.finish()
    assert not journal.is_being_written(tmp_path / "journal.jsonl")
    os.close(write)
    os.waitpid(worker, 0)
