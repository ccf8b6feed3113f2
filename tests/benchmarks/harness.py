"""What every benchmark shares: competitors timed in turns, medians with their spread, one JSON format.

A benchmark is ``tests/benchmarks/NAME.py``, run as ``python -m tests.benchmarks.NAME [--json FILE]``.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptmeup.distributed.world import gpu_names
from promptmeup.shard_format import write_json
from promptmeup.tracking import provenance
from promptmeup.tracking.console import table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Seconds of repeated runs: the median, the quartiles about it, and the shortest."""

    median: float
    p25: float
    p75: float
    min: float


def spread(seconds: Sequence[float]) -> Spread:
    p25, median, p75 = np.percentile(seconds, [25, 50, 75]).tolist()
    return Spread(median, p25, p75, min(seconds))


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmups: int = 1,
    settle: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of `repeats` runs of each function, after `warmups` unmeasured ones.

    They run in turns and each round begins with another one, so that what the machine does meanwhile
    (other jobs, heat, caches) meets all of them alike. `settle` is the pause in seconds before each run,
    for competitors that go on working in the background after theirs.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(warmups + repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(settle)
            began = clock()
            functions[name]()
            took = clock() - began
            if round_number >= warmups:
                seconds[name].append(took)
    return seconds


def environment() -> dict[str, Any]:
    """Return machine, versions, git state, torch's threads and the load at the start."""
    return {
        **provenance.environment(command=sys.argv, gpus=gpu_names()),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def run(
    name: str,
    measure: Callable[[], tuple[Sequence[Row], Mapping[str, float]]],
    *,
    argv: Sequence[str] | None = None,
) -> None:
    """Measure, print a table and the summary, and write {"environment", "rows", "summary"} for ``--json FILE``.

    `measure` returns the rows of the table and the summary, whose keys are the benchmark's interface.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}", description=measure.__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    arguments = parser.parse_args(argv)
    where = environment()
    rows, summary = measure()
    print(f"{name}: {where['cpu']}, {where['cpus']} cores, {', '.join(where['gpus']) or 'no GPU'}\n")
    print(table(rows), end="\n\n")
    print(table([{"summary": key, "value": value} for key, value in summary.items()]))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"environment": where, "rows": [dict(row) for row in rows], "summary": dict(summary)}
        write_json(arguments.json, result)
