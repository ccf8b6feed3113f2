"""What MLflow costs a training: a real pre-training with `tracking.uri` null, and with servers that are well or not.

A line of the journal every step, ten times the default. Training and all its threads share one core, servers have the
other one, as if they were elsewhere. Timed are the steps with their reports, of each run in turns, each beside the run
without MLflow of its round; starting (the import of MLflow) and closing are reported apart. CPU time is the steadier
measure on a shared machine: on one core, what the background thread takes is what training loses. After each run
`sync` sends the rest, and the steps that MLflow has are counted.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptmeup.config import load
from promptmeup.distributed.world import World, join, leave
from promptmeup.tracking.mlflow_run import import_mlflow, run_id
from promptmeup.tracking.sync import sync
from promptmeup.tracking.system import _Sensors
from promptmeup.tracking.tracker import Tracker
from promptmeup.training import pretrain
from promptmeup.training.settings import PretrainConfig
from tests.benchmarks import harness
from tests.support.mlflow_server import MlflowServer, mlflow_server
from tests.support.packed import write_packed_split
from tests.support.real_data import ROOT

STEPS, WARMUP = 140, 10
ROUNDS = int(os.environ.get("ROUNDS", "8"))
CASES = ("null", "healthy", "killed", "slow", "500")
SETTINGS = (
    "start_from=null",
    "loss.weights.object_entity=0",
    "loss.weights.image_relation=0",
    "model.vision.image_size=64",
    "data.image.size=64",
    "data.workers=0",
    "data.max_tokens=24",
    "data.val=null",
    "global_batch=16",
    "epochs=null",
    f"steps={STEPS}",
    "evaluate_every=0",
    "save_every=0",
    "tracking.run_name=null",
    "tracking.log_every=1",
    "tracking.close_seconds=3",
)

IMPORT = """
import time
from promptmeup.tracking.mlflow_run import import_mlflow
began = time.perf_counter()
import_mlflow("http://")
print(time.perf_counter() - began)
"""


@dataclass
class Times:
    """Of one case, a value for each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """of all threads"""
    background: list[float] = field(default_factory=list)
    """of all threads but the training's"""
    close: list[float] = field(default_factory=list)


@dataclass
class Clock:
    """Takes the times at which the steps of a run begin, by standing in the place of `fit`; calls what is due."""

    due: dict[int, Callable[[], None]]
    began: tuple[float, float, float] = (0.0, 0.0, 0.0)
    took: tuple[float, ...] = ()

    def now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), time.thread_time()

    def fit(self, step: Any, batches: Any, **named: Any) -> bool:
        def timed(batch: Any, number: int) -> Any:
            if number == WARMUP:
                self.began = self.now()
            if number in self.due:
                threading.Thread(target=self.due[number]).start()
            if number == STEPS - 1:
                self.took = tuple(b - a for a, b in zip(self.began, self.now(), strict=True))
            return step(batch, number)

        return FIT(timed, batches, **named)


FIT = pretrain.fit


class Servers:
    """One that is killed in each of its runs, one behind a proxy with faults."""

    def __init__(self, mortal: MlflowServer, behind: MlflowServer, proxy: int, cores: set[int]) -> None:
        self.mortal, self.behind, self.cores = mortal, behind, cores
        self.proxy = f"http://127.0.0.1:{proxy}"

    def uri(self, case: str) -> str:
        if case == "null":
            return "null"
        return {"healthy": self.behind.url, "killed": self.mortal.url}.get(case, self.proxy)

    def fault(self, name: str) -> None:
        request = urllib.request.Request(f"{self.proxy}/fault/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def revive(self) -> None:
        self.mortal.start(wait=False)
        os.sched_setaffinity(self.mortal.process.pid, self.cores)

    def due(self, case: str) -> dict[int, Callable[[], None]]:
        """Return what happens before which step: each server is well for the first quarter."""
        quarter = STEPS // 4
        if case == "killed":
            return {quarter: self.mortal.kill, quarter + 10: self.revive}
        if case in ("slow", "500"):
            return {quarter: lambda: self.fault(case)}
        return {}


@contextlib.contextmanager
def servers(folder: Path, cores: set[int]) -> Iterator[Servers]:
    for name in ("mortal", "behind"):
        (folder / name).mkdir()
    with mlflow_server(folder / "mortal") as mortal, mlflow_server(folder / "behind") as behind:
        command = [sys.executable, "-m", "tests.support.mlflow_server", str(behind.port)]
        proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert proxy.stdout
            yield Servers(mortal, behind, int(proxy.stdout.readline()), cores)
        finally:
            proxy.kill()
            proxy.wait()


def run(case: str, folder: Path, packed: Path, *, world: World, around: Servers, times: Times) -> None:
    """Train once, note the times, send the rest and count the steps."""
    overrides = [*SETTINGS, f"out={folder}", f"data.train={packed}", f"tracking.uri={around.uri(case)}"]
    config = load(PretrainConfig, ROOT / "configs/pretrain/tiny.yaml", overrides)
    clock = Clock(around.due(case))
    close = Tracker.finish
    seconds: list[float] = []

    def finish(self: Tracker, *arguments: Any) -> None:
        began = time.perf_counter()
        close(self, *arguments)
        seconds.append(time.perf_counter() - began)

    pretrain.fit = clock.fit  # type: ignore[assignment]
    Tracker.finish = finish  # type: ignore[method-assign]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            assert pretrain.train(config, world) == 0
    finally:
        pretrain.fit, Tracker.finish = FIT, close  # type: ignore[method-assign]
    wall, cpu, own = clock.took
    times.wall.append(wall)
    times.cpu.append(cpu)
    times.background.append(cpu - own)
    times.close.append(sum(seconds))
    print(
        f"{folder.name}: {wall:.2f} s, CPU {cpu:.3f} s, of it not training's {cpu - own:.3f} s",
        file=sys.stderr,
    )
    around.fault("")
    for thread in threading.enumerate():
        if thread.name == "mlflow":  # what was not sent in time, must not meet the next run
            thread.join()
    if case == "null":
        return
    around.mortal.wait()
    sync(folder)
    from mlflow import MlflowClient  # here, so that the first import can be timed

    uri = around.behind.url if case in ("slow", "500") else around.uri(case)
    found = MlflowClient(uri).get_metric_history(run_id(folder) or "", "loss")
    assert sorted(metric.step for metric in found) == list(range(1, STEPS + 1)), case


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median, and a 95 % interval of it by the bootstrap."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return statistics.median(values), float(low), float(high)


def measure_tracking() -> tuple[list[harness.Row], dict[str, float]]:
    """Time of training beside MLflow servers that are well, killed and restarted, slow, or failing."""
    torch.set_num_threads(1)
    ours, *rest = sorted(os.sched_getaffinity(0))
    summary = {
        "tracking_import_seconds": float(subprocess.check_output([sys.executable, "-c", IMPORT], cwd=ROOT))
    }
    import_mlflow("http://")
    times = {case: Times() for case in CASES}
    world = join()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packed = write_packed_split(
            folder / "packed" / "train", num_images=64, captions_per_image=4, boxes_per_image=3, seed=0
        )
        if rest:
            os.sched_setaffinity(0, set(rest))  # inherited by the servers
        with servers(folder, set(rest) or {ours}) as around:
            os.sched_setaffinity(0, {ours})
            for case in ("null", "healthy"):  # these warm up
                run(case, folder / f"{case}-first", packed, world=world, around=around, times=Times())
            for number in range(ROUNDS):
                first = number % len(CASES)
                for case in CASES[first:] + CASES[:first]:
                    place = folder / f"{case}-{number}"
                    run(case, place, packed, world=world, around=around, times=times[case])
        leave()
        sensors = _Sensors(folder)
        began = time.process_time()
        for _ in range(200):
            sensors.read()
        summary["tracking_sample_cpu_ms"] = (time.process_time() - began) * 1000 / 200
    rows: list[harness.Row] = []
    for case, found in times.items():
        row: dict[str, Any] = {"tracking": case, "seconds": harness.spread(found.wall).median}
        if case != "null":
            null = times["null"]
            measured = {
                "": [a / b - 1 for a, b in zip(found.wall, null.wall, strict=True)],
                "cpu_": [a / b - 1 for a, b in zip(found.cpu, null.cpu, strict=True)],
                # apart from training's own, whose CPU time varies by more than all of this
                "background_": [
                    (a - b) / c for a, b, c in zip(found.background, null.background, null.cpu, strict=True)
                ],
            }
            for name, values in measured.items():
                middle, low, high = interval(values)
                row |= {f"{name}overhead %": 100 * middle, f"{name}low": 100 * low, f"{name}high": 100 * high}
                summary[f"tracking_{case}_{name}overhead"] = middle
        row["close s"] = statistics.median(found.close)
        rows.append(row)
    return rows, summary


if __name__ == "__main__":
    harness.run("tracking", measure_tracking)
