"""The commands as users type them: the deepspeed launcher and torchrun, stopped by SIGTERM and resumed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptmeup.tracking import journal
from promptmeup.training.checkpoint import complete
from promptmeup.training.signals import SAVED_EXIT_CODE
from tests.integration.conftest import TINY
from tests.support.real_data import ROOT

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port that was free a moment ago; the deepspeed launcher takes a fixed one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def deepspeed() -> tuple[str, ...]:
    return (
        str(BIN / "deepspeed"),
        *("--num_accelerators", "2", "--log_level", "error", "--master_port", str(free_port())),
    )


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(launcher: tuple[str, ...], world: Path, *overrides: str) -> subprocess.Popen[str]:
    settings = [*TINY, f"data.train={world}/packed/train", f"data.val={world}/packed/val", *overrides]
    command = [*launcher, "launch/pretrain.py", "--config", "configs/pretrain/tiny.yaml", *settings]
    # the launchers find python through PATH
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        path = run / "journal.jsonl"
        if path.exists() and any(number >= step for number in journal.metrics(path)):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"no step {step} in time: {process.communicate()[0]}")


@pytest.mark.timeout(400)
def test_deepspeed_stopped_and_resumed(news_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # long enough that the signal comes in the middle; workers, because they must not be left behind
    overrides = (f"out={run}", "steps=100000", "data.workers=1")
    process = start(deepspeed(), news_world, *overrides)
    wait_for_step(run, 3, process)
    # to the group, as Ctrl-C and timeout(1) do: deepspeed's first process would die of it and tell nobody
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert "stopped after" in output
    tag = complete(run)[-1]
    done = int(tag.removeprefix("step-"))
    assert done >= 3

    process = start(deepspeed(), news_world, f"out={run}", f"steps={done + 3}", "data.workers=1")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    steps = journal.metrics(run / "journal.jsonl")
    assert sorted(steps) == list(range(1, done + 4))
    assert (run / "model/model.json").exists()
    leftovers = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True, check=False).stdout
    assert not leftovers, f"processes left behind: {leftovers}"


@pytest.mark.timeout(300)
def test_alone_exit_code(news_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start((sys.executable,), news_world, f"out={run}", "steps=100000")
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == SAVED_EXIT_CODE, output
    assert complete(run)


@pytest.mark.timeout(300)
def test_torchrun_and_a_user_mistake(news_world: Path, tmp_path: Path) -> None:
    process = start(TORCHRUN, news_world, f"out={tmp_path}/run", "steps=2", "global_batch=15")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "pretrain.py: a global batch of 15 pairs does not divide over 2 ranks" in output
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in output
