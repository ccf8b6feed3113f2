"""System metrics of a node: a file beside the journal, sent by rank 0 alone."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from promptmeup.tracking import journal, mlflow_run, system
from promptmeup.tracking.journal import Journal
from promptmeup.tracking.sync import sync
from promptmeup.tracking.system import NodeWatch
from tests.unit.tracking.conftest import history
from tests.unit.tracking.test_sync import attempt


def lines(folder: Path) -> list[dict[str, Any]]:
    return [entry for path in sorted((folder / "system").glob("*.jsonl")) for entry in journal.read(path)]


def wait_for_lines(folder: Path, count: int) -> None:
    end = time.monotonic() + 30
    while len(lines(folder)) < count:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_samples_are_written_and_counted_on_across_starts(tmp_path: Path) -> None:
    for start in (0, 3):
        with NodeWatch(tmp_path, seconds=0.02):
            wait_for_lines(tmp_path, start + 3)
        time.sleep(0.1)  # the thread closes its file
    found = lines(tmp_path)
    assert [entry["step"] for entry in found] == list(range(len(found)))
    for entry in found:
        assert 0 <= entry["cpu_utilization_percentage"] <= 100
        assert 0 < entry["system_memory_usage_percentage"] < 100
        assert entry["disk_available_megabytes"] >= 0
        assert entry["network_receive_megabytes"] >= 0


def test_zero_seconds_take_none(tmp_path: Path) -> None:
    with NodeWatch(tmp_path, seconds=0):
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


def test_gpus_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def power(gpu: int) -> int:
        if gpu == 1:
            raise RuntimeError("not supported")
        return 250_000

    nvml = SimpleNamespace(
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=20 << 30, total=80 << 30),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=97 - gpu),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setattr(system, "_open_gpus", lambda: (nvml, [0, 1]))
    found = system._Sensors(tmp_path).read()
    assert found["gpu_0_utilization_percentage"] == 97 and found["gpu_1_utilization_percentage"] == 96
    assert found["gpu_1_memory_usage_megabytes"] == 20480 and found["gpu_1_memory_usage_percentage"] == 25
    assert found["gpu_0_power_usage_watts"] == 250 and "gpu_1_power_usage_watts" not in found


def test_sensors_that_fail_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any) -> dict[str, float]:
        raise OSError("no such sensor")

    monkeypatch.setattr(system._Sensors, "_disk", broken)
    with NodeWatch(tmp_path, seconds=0.02):
        wait_for_lines(tmp_path, 2)
    assert "cpu_utilization_percentage" in lines(tmp_path)[0]
    assert "disk_usage_percentage" not in lines(tmp_path)[0]

    (tmp_path / "file").write_text("no folder can be made here")
    with NodeWatch(tmp_path / "file", seconds=0.02):
        pass
    assert "no system metrics of this node" in capsys.readouterr().out


def test_every_node_is_in_mlflow_once(store: str, client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    books = [Journal(folder / "system" / f"node{n}.jsonl") for n in (1, 2)]
    tracker = attempt(folder, store, range(1, 4), finish=None)
    for step in range(5):
        for number, book in enumerate(books):
            book.write("system", step=step, cpu_utilization_percentage=10.0 * number + step)
    tracker.finish()
    for book in books:
        book.write("system", step=5, cpu_utilization_percentage=50.0)  # a node that stopped later
    assert "2 lines" in sync(folder)
    assert "nothing was missing" in sync(folder)
    first, second = (history(client, folder, f"system/node{n}/cpu_utilization_percentage") for n in (1, 2))
    assert first == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert [step for step, _ in second] == list(range(6))
    run = client.get_run(mlflow_run.run_id(folder) or "")
    assert {"promptmeup.system_bytes.node1", "promptmeup.system_bytes.node2"} <= run.data.tags.keys()
