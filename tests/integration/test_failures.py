"""What is left of a run when a rank raises, dies or hangs, numbers overflow, the disk is full, or a file rots."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from promptmeup.tracking import journal
from promptmeup.training.checkpoint import complete
from tests.integration.conftest import TINY, tiny_config, train_on_rank
from tests.integration.test_launchers import free_port
from tests.integration.test_training import curve
from tests.support.ranks import RankError, run_ranks
from tests.support.real_data import ROOT

NO_LABELS = ("loss.weights.object_entity=0", "loss.weights.image_relation=0")


def run(world: Path, out: Path, *overrides: str, ranks: int = 1, fault: str = "") -> list[tuple[int, str]]:
    """Start ranks as a launcher does that never interferes; return exit code and output of each."""
    settings = [*TINY, f"data.train={world}/packed/train", f"data.val={world}/packed/val", f"out={out}"]
    command = [sys.executable, "tests/support/faulty.py", "--config", "configs/pretrain/tiny.yaml"]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [*command, *settings, *NO_LABELS, *overrides],
            cwd=ROOT,
            env={
                **os.environ,
                **common,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "FAULT": fault or "none:0:0",
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=200)
        results.append((process.returncode, output))
    leftovers = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout
    assert not leftovers, f"processes left behind: {leftovers}"
    return results


def crash(out: Path) -> dict[str, Any]:
    return json.loads((out / "crash.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.timeout(400)
def test_a_rank_that_raises_is_named_with_its_batch(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = run(news_world, out, "steps=30", "save_every=4", "data.workers=1", ranks=2, fault="raise:1:7")
    assert all(code != 0 for code, _ in results)
    found = crash(out)
    assert found["first"] == 1 and "RuntimeError: the fault of this test" in found["headline"]
    assert "step 7, step:" in found["headline"]
    assert len(found["keys"]) == 8 and all(len(key) == 16 for key in found["keys"])
    assert any("in step" in line for line in found["traceback"])
    assert complete(out) == ["step-00000004"]
    last = journal.read(out / "journal.jsonl")[-1]
    assert last["event"] == "finish" and last["status"] == "FAILED"

    # started again it says what happened, and goes on
    results = run(news_world, out, "steps=6", ranks=1)
    assert results[0][0] == 0, results[0][1]
    warnings = [line["text"] for line in journal.read(out / "journal.jsonl") if line["event"] == "warning"]
    assert any("the last start ended badly: rank 1" in text for text in warnings)
    assert (out / "crash-1.json").exists() and not (out / "crash.json").exists()


@pytest.mark.timeout(400)
def test_too_little_memory_says_what_to_set(news_world: Path, tmp_path: Path) -> None:
    ((code, output),) = run(news_world, tmp_path / "run", "steps=4", fault="memory:0:2")
    assert code == 1 and "Traceback" not in output
    assert "a step of 16 pairs at once does not fit the GPU (CUDA out of memory): start" in output
    assert "again with micro_batch=8, the same step in more parts" in output
    assert "OutOfMemoryError" in json.dumps(crash(tmp_path / "run"))


@pytest.mark.timeout(400)
def test_no_room_for_the_model_at_the_end(news_world: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").touch()
    ((code, output),) = run(news_world, tmp_path / "run", "steps=4", "save_every=4")
    assert code == 1 and "Traceback" not in output
    assert "run/model: File exists; make room or mend the permissions, and start the same command" in output
    (tmp_path / "run/model").unlink()
    ((code, output),) = run(news_world, tmp_path / "run", "steps=4", "save_every=4")
    assert code == 0 and (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.timeout(400)
def test_a_killed_rank_is_the_one_that_says_nothing(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = run(news_world, out, "steps=30", "save_every=4", "data.workers=1", ranks=2, fault="kill:0:6")
    assert results[0][0] == -9 and results[1][0] != 0
    found = crash(out)
    assert found["first"] == 0 and "rank 0 ended without a word: killed" in found["headline"]
    assert found["silent"] == [0] and [report["kind"] for report in found["reports"]] == ["lost contact"]


@pytest.mark.timeout(400)
def test_a_hanging_rank_is_named_and_ended(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin = time.monotonic()
    results = run(news_world, out, "steps=30", "engine.timeout=25", ranks=2, fault="hang:1:5")
    assert all(code != 0 for code, _ in results)
    found = crash(out)
    assert found["first"] == 1 and "rank 1 on" in found["headline"]
    assert "does not get on: no progress for" in found["headline"]
    assert any("time.sleep" in line for line in found["traceback"])
    assert time.monotonic() - begin < 190, "ended by the limit, not by the test"
    assert journal.read(out / "journal.jsonl")[-1]["status"] == "FAILED"


@pytest.mark.timeout(400)
def test_steps_that_are_not_finite(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ((code, output),) = run(news_world, out, "steps=8", fault="nan:0:3:2")
    assert code == 0, output
    skipped = [line for line in journal.read(out / "journal.jsonl") if line["event"] == "skipped"]
    assert [line["step"] for line in skipped] == [3, 4]
    assert all("rank 0: loss/total = nan: images: " in line["why"] for line in skipped)
    state = json.loads((out / "checkpoints/step-00000008/run_state.json").read_text())
    assert state["skipped"] == 2

    out = tmp_path / "diverged"
    ((code, output),) = run(news_world, out, "steps=20", "save_every=2", "max_skipped=3", fault="nan:0:5:99")
    assert code == 1
    assert "step 8: 4 steps in a row were not finite" in output and "start again to resume" in output
    assert complete(out)[-1] == "step-00000006", "the weights are those of step 4"
    assert "images: " in crash(out)["headline"]


@pytest.mark.timeout(400)
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ((code, output),) = run(news_world, out, "steps=8", "save_every=2", fault="full:0:4:2")
    assert code == 0, output
    lines = journal.read(out / "journal.jsonl")
    (warning,) = (line for line in lines if "could not be written" in line.get("text", ""))
    assert warning["step"] == 4 and "most likely the disk or a quota is full" in warning["text"]
    assert "the checkpoint of step 4 could not be written" in warning["text"]
    assert "step-00000002 is the newest one still; training goes on" in warning["text"]
    assert complete(out) == ["step-00000006", "step-00000008"]
    assert not list((out / "checkpoints").glob("*.partial"))


def test_a_rotten_checkpoint_is_put_aside_loudly(news_world: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    common = ("save_every=2", "optim.decay=none", "optim.warmup=0", *NO_LABELS)
    assert run_ranks(
        train_on_rank, 2, tiny_config(news_world, f"out={whole}", "steps=6", *common), timeout=120
    )
    assert run_ranks(train_on_rank, 2, tiny_config(news_world, f"out={out}", "steps=4", *common), timeout=120)
    file = max((out / "checkpoints/step-00000004").glob("*.pt"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    longer = tiny_config(news_world, f"out={out}", "steps=6", *common)
    assert run_ranks(train_on_rank, 2, longer, timeout=120) == [True, True]
    warnings = [line["text"] for line in journal.read(out / "journal.jsonl") if line["event"] == "warning"]
    (said,) = (text for text in warnings if "is damaged" in text)
    assert f"{file.name} is not what was written" in said and "going back to step-00000002" in said
    assert (out / "checkpoints/step-00000004.damaged").is_dir()
    assert curve(out) == curve(whole)

    for tag in complete(out):
        (out / "checkpoints" / tag / "run_state.json").write_text("{")
    with pytest.raises(RankError, match=r"no checkpoint of \S+ is whole: .*run_state.json cannot be read"):
        run_ranks(train_on_rank, 1, longer, timeout=120)


def test_save_and_stop_files(news_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [
        *TINY,
        f"data.train={news_world}/packed/train",
        f"data.val={news_world}/packed/val",
        f"out={out}",
    ]
    command = [sys.executable, "launch/pretrain.py", "--config", "configs/pretrain/tiny.yaml", *settings]
    process = subprocess.Popen(
        [*command, *NO_LABELS, "steps=100000"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    try:
        _wait(lambda: (out / "journal.jsonl").exists() and len(journal.metrics(out / "journal.jsonl")) > 2)
        assert not complete(out)
        (out / "SAVE").touch()
        _wait(lambda: len(complete(out)) == 1)
        assert not (out / "SAVE").exists() and process.poll() is None
        (out / "STOP").touch()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert f"by={out}/STOP" in output
    assert len(complete(out)) == 2
    again = subprocess.run(
        [*command, *NO_LABELS, "steps=9"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert f"{out}/STOP is there, so nothing is done; remove it to go on" in again.stdout


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
