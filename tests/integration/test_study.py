"""Whole studies of commands that take no time: what is run, what lies in the folder, and kill -9 at random moments."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptmeup.errors import ConfigError, StudyError
from promptmeup.study.job import link_folder
from promptmeup.study.plan import make_plan
from promptmeup.study.results import read_scores, read_study
from promptmeup.study.settings import StudyConfig
from promptmeup.study.study import require_gpus, study
from promptmeup.tracking.provenance import code_version
from tests.support.real_data import ROOT
from tests.support.study_chain import chain, configured, content, runs

KILLS = 12
OTHER = 'arms=[{name: half, change: {names: ["rate=0.1"]}}, {name: all boxes, change: {jitter: ["rate=1"]}}]'
"""the baseline with another last stage"""


def run(config: StudyConfig) -> str:
    """Run a study in a process group of its own, forked from a server with everything imported; return its words."""
    process = start(config)
    process.join()
    shown = config.out.with_suffix(".shown").read_text()
    assert process.exitcode == 0, shown
    return shown


def start(config: StudyConfig) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["promptmeup.study.study", "promptmeup.packing.pack", "spacy", "pytest"])
    process = context.Process(target=_study, args=(config,))
    process.start()
    return process


def _study(config: StudyConfig) -> None:
    os.setsid()
    shown = os.open(config.out.with_suffix(".shown"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(shown, 1)
    os.dup2(shown, 2)
    study(config)


def total_runs(config: StudyConfig) -> int:
    return sum(runs(stage) for stage in make_plan(config).stages)


def test_what_is_written(tmp_path: Path) -> None:
    config = configured(tmp_path)
    shown = run(config)
    assert "2 arms x 2 seeds = 4 cells, 0 of them finished" in shown
    assert "boxes begins: half, seed 1 and 1 more; log: " in shown
    assert "[10/10] names done in 0:00: all boxes, seed 2" in shown
    assert "4 of 4 cells are finished" in shown
    found = read_study(config.out)
    assert (found.name, found.baseline, found.seeds) == ("study", "half", (1, 2))
    results = read_scores(config.out, found)
    assert not results.missing and len(results.scores) == 4
    cell = json.loads((config.out / "cells/all-boxes/seed-2/cell.json").read_text())
    assert (cell["arm"], cell["seed"]) == ("all boxes", 2)
    stages = {"boxes", "jitter", "names"}
    assert cell["seconds"].keys() == cell["ended"].keys() == cell["stages"].keys() == stages
    assert set(cell["code"].values()) == {code_version()}
    assert f"The 10 stages of the finished cells took 0:00 of one process. Code: {code_version()}." in (
        config.out / "report.md"
    ).read_text(encoding="utf-8")
    assert all((config.out / name).exists() for name in ("report.md", "report.html", "scores.json"))
    assert total_runs(config) == 10

    before = content(config.out)
    assert "4 of them finished" in run(config)
    assert total_runs(config) == 10, "nothing is run again"
    assert content(config.out) == before


def test_relative_folders_as_in_the_shipped_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = configured(tmp_path, "out=one", "store=stages")
    assert "4 of 4 cells are finished" in run(config)
    assert (tmp_path / "one/cells/half/seed-1/cell.json").exists()


def test_another_study_shares_the_store(tmp_path: Path) -> None:
    run(configured(tmp_path))
    other = configured(tmp_path, f"out={tmp_path}/other", "seeds=[2, 3]")
    run(other)
    assert total_runs(other) == 10, "seed 2 is the first study's"
    assert read_study(tmp_path / "other").seeds == (2, 3)


def test_an_emptied_store_is_made_anew_and_so_are_the_predictions(tmp_path: Path) -> None:
    config = configured(tmp_path)
    run(config)
    path = config.out / "cells/half/seed-1/cell.json"
    before = json.loads(path.read_text())
    shutil.rmtree(config.store)
    run(config)
    after = json.loads(path.read_text())
    assert all(after["ended"][name] > ended for name, ended in before["ended"].items())


def test_cells_of_another_setting_do_not_count_until_they_are_made_anew(tmp_path: Path) -> None:
    run(configured(tmp_path))
    changed = configured(tmp_path, OTHER)
    shown = run(configured(tmp_path, OTHER, "report_only=true"))
    assert "UNFINISHED. Cells missing: 2" in shown
    missing = read_scores(changed.out, read_study(changed.out)).missing
    assert {(one.seed, one.what) for one in missing} == {
        (seed, "what is there was made with other settings") for seed in (1, 2)
    }
    assert "4 of 4 cells are finished" in run(changed)


def test_ranks_without_a_gpu_each_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [replace(stage, ranks=2) for stage in make_plan(configured(tmp_path)).stages]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    require_gpus(stages, ["0,2", "1,3"])
    require_gpus(stages, [None, None])
    with pytest.raises(
        ConfigError, match="has 2 ranks, and each of 3 processes has 1 of the 4 GPUs: set processes=1"
    ):
        require_gpus(stages, ["0,3", "1", "2"])


def test_predictions_of_another_setting_are_replaced(tmp_path: Path) -> None:
    config = configured(tmp_path)
    run(config)
    cell = config.out / "cells/half/seed-1"
    other = config.out / "cells/all-boxes/seed-1/cell.json"
    kept = other.stat().st_mtime_ns
    (cell / "pretrain.jsonl").write_text('{"step": 1, "loss/total": 1.0}\n')
    before = json.loads((cell / "cell.json").read_text())
    changed = configured(tmp_path, OTHER)
    run(changed)
    after = json.loads((cell / "cell.json").read_text())
    assert after["stages"]["names"] != before["stages"]["names"]
    assert after["stages"]["boxes"] == before["stages"]["boxes"]
    assert not (cell / "pretrain.jsonl").exists(), "it was the other setting's"
    assert other.stat().st_mtime_ns == kept
    # a measure's file alone: nothing is run, the cell is taken anew
    moved = chain(tmp_path / "inputs")
    moved["measures"]["again"] = moved["measures"]["retrieval"]
    run(configured(tmp_path, chain_of=moved))
    assert (cell / "again.jsonl").read_bytes() == (cell / "retrieval.jsonl").read_bytes()


def test_report_only(tmp_path: Path) -> None:
    config = configured(tmp_path, "report_only=true")
    study(config)
    assert "UNFINISHED. Cells missing: 4" in (config.out / "report.md").read_text()
    assert not (tmp_path / "store").exists()
    run(configured(tmp_path, "seeds=[1]"))
    study(config)
    assert "Cells missing: 2" in (config.out / "report.md").read_text()
    assert total_runs(config) == 5


def test_a_failure(tmp_path: Path) -> None:
    """The other cells are finished, the message shows the log's end, and the same command mends it."""
    late = tmp_path / "late.jsonl"
    arms = f'arms=[{{name: half}}, {{name: late, change: {{jitter: ["source={late}"]}}}}]'
    config = configured(tmp_path, arms)
    with pytest.raises(StudyError) as caught:
        study(config)
    message = str(caught.value)
    assert message.count("jitter failed (late, seed ") == 2
    assert f"{late}" in message and "make_box_errors: " in message
    assert "2 further stages need what failed" in message
    assert "the same command tries them again" in message
    assert "Cells missing: 2" in (config.out / "report.md").read_text()
    assert (config.out / "cells/half/seed-2/cell.json").exists()
    shutil.copyfile(tmp_path / "inputs/boxes.jsonl", late)
    study(config)
    assert "4 of 4 cells are finished" in (config.out / "report.md").read_text()
    stages = {s.name: runs(s) for s in make_plan(config).stages if str(late) in s.config.model_dump_json()}
    assert stages == {"jitter": 1}, "with the file it is another stage"


def test_a_file_that_the_chain_misnames(tmp_path: Path) -> None:
    wrong = chain(tmp_path / "inputs")
    wrong["measures"]["retrieval"]["file"] = "{names}/predictions/retreival.jsonl"
    with pytest.raises(
        StudyError, match=r"arm 'half', seed 1: .*retreival.jsonl is not there, though its stage"
    ):
        study(configured(tmp_path, chain_of=wrong))


def test_linked_files_never_change(tmp_path: Path) -> None:
    """A later stage replaces a file in its own folder alone; a linking that was killed is finished."""
    linked = chain(tmp_path / "inputs")
    linked["stages"]["jitter"] = {
        "command": "make_box_errors",
        "set": ["source={boxes}/boxes.jsonl", "out={self}/copy/boxes.jsonl", "rate=0.9"],
        "link": {"copy": "{boxes}"},
    }
    config = configured(tmp_path, chain_of=linked)
    stages = {s.name: s for s in make_plan(config).cells[0].stages.values()}
    half = stages["jitter"].folder / "copy.linking"
    half.mkdir(parents=True)
    (half / "boxes.jsonl").write_text("half")
    study(config)
    source, copy = stages["boxes"].folder / "boxes.jsonl", stages["jitter"].folder / "copy/boxes.jsonl"
    assert source.read_bytes() != copy.read_bytes()
    assert [json.loads(line) for line in source.read_text().splitlines()] == [
        json.loads(line) for line in (tmp_path / "inputs/boxes.jsonl").read_text().splitlines()
    ]
    assert (stages["names"].folder / "predictions/retrieval.jsonl").samefile(
        tmp_path / "inputs/predictions/retrieval.jsonl"
    )


def test_no_hard_links(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="put the study's store on a file system that has them"):
        link_folder(tmp_path / "absent", tmp_path / "target")
    other = Path("/dev/shm")
    if other.stat().st_dev != tmp_path.stat().st_dev:
        (tmp_path / "source").mkdir()
        (tmp_path / "source/a").touch()
        target = other / f"study-{os.getpid()}"
        with pytest.raises(StudyError, match="cross-device"):
            link_folder(tmp_path / "source", target)
        shutil.rmtree(target.with_name(f"{target.name}.linking"))


def with_worlds(folder: Path) -> dict[str, Any]:
    """Return the chain behind worlds that take a moment: what is killed has begun something."""
    value = chain(folder / "inputs")
    world = {
        "command": "synthesize",
        "set": [
            *(
                "out={self}",
                "seed={seed}",
                "num_train_images=60",
                "num_val_images=10",
                "captions_per_image=1",
            ),
            "extraction={num_train: 4, num_val: 2, num_test: 4}",
        ],
    }
    value["stages"] = {"world": world} | value["stages"]
    value["stages"]["boxes"]["set"][0] = "source={world}/visual_news/origin/boxes.jsonl"
    value["ceiling"] = "{world}/extraction/ceiling.json"
    return value


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """`kill -9` of everything, or of the command alone; run again, all is as if nothing had happened."""

    def made(folder: Path, *overrides: str) -> StudyConfig:
        return configured(folder, *overrides, chain_of=with_worlds(tmp_path / "whole"))

    run(configured(tmp_path / "warm"))  # starts the server
    whole = made(tmp_path / "whole")
    began = time.monotonic()
    run(whole)
    seconds = time.monotonic() - began
    expected = results(whole)
    assert len(expected) > 200
    generator, unfinished = random.Random(0), 0
    for number in range(KILLS):
        config = made(tmp_path / f"killed{number}", f"processes={1 + number % 2}")
        for _ in range(2):
            process = start(config)
            process.join(generator.uniform(0, seconds))
            alone = number % 3 == 2
            with contextlib.suppress(ProcessLookupError):  # done, or not yet a group
                (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            unfinished += not (config.out / "report.html").exists()
        run(config)
        assert results(config) == expected, f"kill {number}"
    assert unfinished >= KILLS // 2


def results(config: StudyConfig) -> dict[str, bytes]:
    """Return all files of the stages and of the cells, without what holds the folder's own path or times."""
    found = {}
    for folder in (config.store, config.out / "cells"):
        for name, value in content(folder).items():
            if name.endswith((".yaml", "synthetic_world.json", "cell.json", ".tmp")):
                continue
            found[name] = value.replace(str(config.store.parent).encode(), b"")
    return found


@pytest.mark.slow
def test_stopped_and_started_from_the_command_line(tmp_path: Path) -> None:
    """85 after SIGTERM; exit code 1 and no traceback after a failure; 2 for what is set wrong."""
    config = configured(tmp_path, chain_of=with_worlds(tmp_path))
    command = [sys.executable, "launch/study.py", "--config", str(tmp_path / "study.yaml")]

    def begin(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    process = begin("processes=2")
    assert process.stdout is not None
    for line in process.stdout:
        if "world begins" in line:
            break
    process.terminate()
    rest = process.stdout.read()
    assert process.wait() == 85, rest
    assert "stopped; the same command goes on" in rest and "Traceback" not in rest
    run(config)
    assert "4 of 4 cells are finished" in (config.out / "report.md").read_text()

    done = begin('change={jitter: ["source=no/such/file"]}')
    shown, _ = done.communicate()
    assert done.returncode == 1 and "Traceback" not in shown, shown
    assert "study.py: jitter failed (half, seed 1)" in shown and "no/such/file" in shown


@pytest.mark.slow
def test_mlflow(tmp_path: Path) -> None:
    """A run for the study, one below it for each cell, each once; a changed cell takes the place of the earlier one."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def called(*overrides: str) -> list[Any]:
        run(configured(tmp_path, f"tracking.uri={uri}", *overrides))
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("studies")
        assert experiment is not None
        assert Path(experiment.artifact_location.removeprefix("file://")) == tmp_path / "mlruns"
        found = client.search_runs([experiment.experiment_id])
        parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
        assert [run.info.run_name for run in parents] == ["study"]
        assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in children)
        assert {run.info.status for run in found} == {"FINISHED"}
        return sorted(children, key=lambda run: str(run.info.run_name))

    first = called()
    names = ["all boxes, seed 1", "all boxes, seed 2", "half, seed 1", "half, seed 2"]
    assert [run.info.run_name for run in first] == names
    assert first[0].data.params["arm"] == "all boxes"
    scores = json.loads((tmp_path / "study/scores.json").read_text())
    assert str(round(first[0].data.metrics["retrieval"], 3))[:5] in json.dumps(scores)
    assert "retrieval/text to image R_5" in str(first[0].data.metrics) or len(first[0].data.metrics) == 7
    ids = [run.info.run_id for run in first]
    assert [run.info.run_id for run in called()] == ids
    # as if the call had been killed before it noted what it had sent
    (tmp_path / "study/mlflow.json").unlink()
    assert [run.info.run_name for run in called()] == names
    kept = {run.info.run_name: run.info.run_id for run in called()}
    early = {run.info.run_name: run.info.run_id for run in called(OTHER, "report_only=true")}
    assert early == kept, "what is there is not of these settings"
    again = {run.info.run_name: run.info.run_id for run in called(OTHER)}
    assert list(again) == names
    assert [name for name in names if kept[name] == again[name]] == names[:2]
    shutil.rmtree(tmp_path / "store")
    anew = {run.info.run_name: run.info.run_id for run in called(OTHER)}
    assert list(anew) == names and not set(anew.values()) & set(again.values()), "all were made anew"


def test_a_dead_tracker_costs_a_warning(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    config = configured(tmp_path, f"tracking.uri=sqlite:///{nowhere}/mlflow.db", "seeds=[1]")
    shown = run(config)
    assert "does not take the study's cells" in shown and "report_only=true sends them" in shown
    assert "2 of 2 cells are finished" in (config.out / "report.md").read_text()


def test_without_mlflow_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.uri=null"):
        study(configured(tmp_path, "tracking.uri=sqlite:///a.db"))
    assert not (tmp_path / "study").exists()
