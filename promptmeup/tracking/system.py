"""What a node's processors, memory, disk, network and GPUs do during a run: a line every few seconds.

The first rank of each node writes RUN/system/NODE.jsonl; rank 0 alone sends them to MLflow, where they are
system/NODE/... under the names that MLflow itself uses. So no other rank needs the server, and an outage
loses nothing.
"""

import re
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from promptmeup.tracking import journal
from promptmeup.tracking.journal import Journal

_MEGABYTE = 1 << 20


class NodeWatch:
    """Samples this node in a thread of its own while used as a context; never raises, never waited for.

    Args:
        folder: the run folder.
        seconds: between two samples; 0: none are taken.
    """

    def __init__(self, folder: Path, *, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if self._seconds > 0:
            try:
                node = re.sub(r"[^\w-]", "_", socket.gethostname().partition(".")[0]) or "node"
                book = Journal(self._folder / "system" / f"{node}.jsonl")
                # imported here: a data worker forked while a thread imports would hang at its own imports
                sensors = _Sensors(self._folder)
                step = 1 + max((entry["step"] for entry in journal.read(book.path)), default=-1)
                thread = threading.Thread(
                    target=self._work, args=(book, sensors, step), name="system", daemon=True
                )
                thread.start()
            except Exception as error:  # no folder, no psutil: the run does not depend on it
                print(f"warning: no system metrics of this node: {error}", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _work(self, book: Journal, sensors: "_Sensors", step: int) -> None:
        while not self._stop.wait(self._seconds):
            if not book.has_rival():
                book.write("system", step=step, **sensors.read())
                step += 1
        book.close()


class _Sensors:
    """Reads this machine; what fails is left out."""

    def __init__(self, folder: Path) -> None:
        import psutil

        self._psutil = psutil
        self._folder = folder
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # later calls count from here
        self._nvml, self._gpus = _open_gpus()

    def read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        parts: list[Callable[[], dict[str, float]]] = [self._cpu, self._disk, self._net]
        parts += [partial(part, n) for part in (self._gpu, self._power) for n in range(len(self._gpus))]
        for part in parts:
            try:
                found |= part()
            except Exception:
                continue
        return {name: round(value, 2) for name, value in found.items()}

    def _cpu(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }

    def _disk(self) -> dict[str, float]:
        disk = self._psutil.disk_usage(str(self._folder))
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
        }

    def _net(self) -> dict[str, float]:
        now, began = self._psutil.net_io_counters(), self._network
        return {
            "network_receive_megabytes": (now.bytes_recv - began.bytes_recv) / _MEGABYTE,
            "network_transmit_megabytes": (now.bytes_sent - began.bytes_sent) / _MEGABYTE,
        }

    def _gpu(self, number: int) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._gpus[number])
        return {
            f"gpu_{number}_utilization_percentage": self._nvml.nvmlDeviceGetUtilizationRates(
                self._gpus[number]
            ).gpu,
            f"gpu_{number}_memory_usage_megabytes": memory.used / _MEGABYTE,
            f"gpu_{number}_memory_usage_percentage": 100 * memory.used / memory.total,
        }

    def _power(self, number: int) -> dict[str, float]:
        """Apart from the rest: not every GPU tells."""
        return {
            f"gpu_{number}_power_usage_watts": self._nvml.nvmlDeviceGetPowerUsage(self._gpus[number]) / 1000
        }


def _open_gpus() -> tuple[Any, list[Any]]:
    """Return NVIDIA's library and its handles of this node's GPUs; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
    except Exception:
        return None, []
