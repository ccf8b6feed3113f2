"""Libraries that the commands of a study import when they need them: a worker has them before it forks."""

import importlib

MODULES = (
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "seqeval.metrics",
    "orjson",
    "pandas",
    "setuptools",
)
"""together three seconds of every fine-tuning, and two of every pre-training"""


def preload() -> None:
    for name in MODULES:
        importlib.import_module(name)
