import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from promptmeup.config import Config
from promptmeup.tracking import curves, journal, mlflow_run
from promptmeup.tracking.journal import Journal
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.settings import TrackingConfig
from promptmeup.tracking.tracker import Tracker


class Settings(Config):
    steps: int = 2
    tracking: TrackingConfig = TrackingConfig()


def test_run_is_in_journal_console_folder_and_mlflow(
    store: str, client: MlflowClient, tmp_path: Path, capsys
) -> None:
    config = Settings(tracking=TrackingConfig(uri=store, experiment="whole", flush_seconds=0.1))
    folder = tmp_path / "run"
    with Tracker(folder, config=config.tracking, total_steps=2) as tracker:
        tracker.start(config=config, environment=environment(command=["pretrain.py"], world_size=2))
        tracker.step(1, {"loss": 2.0, "lr": 0.1})
        tracker.evaluation(1, {"r1": 0.25})
        tracker.event("checkpoint", 1, path="step-1")
        tracker.step(2, {"loss": 1.0, "lr": 0.1})
    events = [entry["event"] for entry in journal.read(folder / "journal.jsonl")]
    assert events == ["start", "step", "evaluation", "checkpoint", "step", "finish"]
    out = capsys.readouterr().out
    assert "step 2/2  loss 1.0000" in out
    assert "checkpoint after 1 steps  path=step-1" in out

    run = client.get_run(mlflow_run.run_id(folder) or "")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 1.0, "lr": 0.1, "evaluation/r1": 0.25}
    assert run.data.params["tracking.experiment"] == "whole"
    assert run.data.tags["world_size"] == "2"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "environment.json", "curves.png"}


def test_exception_ends_the_run_as_failed_and_a_restart_goes_on(tmp_path: Path) -> None:
    config = Settings(tracking=TrackingConfig(uri=None))

    def attempt(step: int) -> None:
        with Tracker(tmp_path, config=config.tracking, total_steps=2) as tracker:
            tracker.start(config=config, environment={}, step=step)
            tracker.step(step + 1, {"loss": 1.0})
            if step == 0:
                raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        attempt(0)
    attempt(1)
    entries = journal.read(tmp_path / "journal.jsonl")
    assert [(e["event"], e["step"]) for e in entries] == [
        ("start", 0),
        ("step", 1),
        ("finish", 1),
        ("resume", 1),
        ("step", 2),
        ("finish", 2),
    ]
    assert [e["status"] for e in entries if e["event"] == "finish"] == ["FAILED", "FINISHED"]
    assert not (tmp_path / "mlflow_run_id").exists()


def test_other_ranks_write_and_print_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with Tracker.off() as tracker:
        tracker.start(config=Settings(), environment={})
        tracker.step(1, {"loss": 1.0})
        tracker.evaluation(1, {"r1": 1.0})
        tracker.event("checkpoint", 1)
        tracker.finish()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_curves_are_a_picture_with_a_panel_for_each_kind(tmp_path: Path) -> None:
    book = Journal(tmp_path / "journal.jsonl")
    for step in range(1, 40):
        loss = math.nan if step == 7 else 1 / step
        book.write("step", step=step, **{"loss": loss, "loss/matching": loss, "lr": 0.1})
    book.write("evaluation", step=39, r1=0.5)
    curves.draw(book.path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == pytest.approx(3 * 5 * 110, abs=2)  # losses, evaluation, lr
        assert len(picture.convert("L").getcolors() or []) > 10


def test_curves_of_an_empty_journal_are_an_empty_picture(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl").write("start", step=0)
    curves.draw(tmp_path / "journal.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"


def test_evaluations_of_splits_and_types_have_panels_of_their_own(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "journal.jsonl")
    named = {"val/f1": 0.5, "val/recall": 0.4, "val/type/PER/f1": 0.3, "val/relation/per/loc/f1": 0.2}
    book.write("evaluation", step=1, **named, mean_recall=0.1)
    book.close()
    panels = {panel: sorted(found) for panel, found in curves._panels(book.path).items()}
    assert panels == {
        "evaluation": ["mean_recall"],
        "val": ["val/f1", "val/recall"],
        "val/type": ["val/type/PER/f1"],
        "val/relation": ["val/relation/per/loc/f1"],
    }
