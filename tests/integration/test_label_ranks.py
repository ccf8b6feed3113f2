"""The labelling command on one, two and four processes, and killed: the same files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptmeup.training.inputs import choose_labels
from tests.support.real_data import ROOT


def _command(world: Path, split: Path, ranks: int) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    settings = [f"teacher={world}/teacher/model", f"splits=[{split}]", "temperature=0.003", "device=cpu"]
    return [*launcher, "launch/label.py", "--config", "configs/label/tiny.yaml", *settings]


def _content(split: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(choose_labels(split, None).glob("*.npy"))}


def _unlabelled(world: Path, folder: Path) -> Path:
    split = folder / "train"
    shutil.copytree(world / "packed/train", split)
    shutil.rmtree(split / "labels")
    return split


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_writes_the_same_labels(news_world: Path, tmp_path: Path, ranks: int) -> None:
    split = _unlabelled(news_world, tmp_path)
    done = subprocess.run(
        _command(news_world, split, ranks), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "objects: the first prompt is named in the photo's captions" in done.stdout
    # the fixture's were made in the test process
    expected = _content(news_world / "packed/train")
    found = _content(split)
    assert found.keys() == expected.keys() and len(found) == 6
    assert found == expected


def test_killed_labelling_goes_on_with_the_same_labels(news_world: Path, tmp_path: Path) -> None:
    split = _unlabelled(news_world, tmp_path)
    running = subprocess.Popen(
        _command(news_world, split, 1), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(split.glob("labels/*/*.npy")) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not list(split.glob("labels/*/manifest.json")), "killed too late to say anything"
    subprocess.run(_command(news_world, split, 1), cwd=ROOT, capture_output=True, timeout=200, check=True)
    assert _content(split) == _content(news_world / "packed/train")
