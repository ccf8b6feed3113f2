"""A GPU node without the internet: `python -m tests.support.gpu_node TOKENIZER` hides whatever else is installed here.

It imports every module, starts a run whose MLflow is missing, trains a step, and prints what it saw as a line of JSON.
"""

import importlib
import json
import pkgutil
import re
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

NODE = ("torch", "transformers", "timm", "deepspeed", "pydantic", "PyYAML")
BENCHMARKS = (
    "tests.benchmarks.harness",
    "tests.benchmarks.loss",
    "tests.benchmarks.step",
    "tests.benchmarks.numerics",
)
ROWS = 4


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """Return the distributions of these names, and what they require, as they are installed here."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = canonical(requirement.name)
        if name in found:  # an extra of it as well is a corner that nothing here has
            continue
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # of another system
            continue
        found.add(name)
        extras = ("", *requirement.extras)
        todo += [r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


def hide_the_rest() -> None:
    """Let this process find the standard library, this work tree and what `NODE` brings, and nothing else."""
    there = with_dependencies(NODE) | {"promptmeup"}
    hidden = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not there & {canonical(owner) for owner in owners}
    }

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            is_hidden = fullname.partition(".")[0] in hidden
            return None if is_hidden else super().find_spec(fullname, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder


def import_all() -> dict[str, str | None]:
    """Import every module; return for those that cannot be the missing library."""
    import promptmeup

    assert Path(promptmeup.__file__).parents[1] == Path.cwd()
    names = [module.name for module in pkgutil.walk_packages(promptmeup.__path__, "promptmeup.")]
    missing = {}
    for name in [*names, *BENCHMARKS]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing[name] = error.name
    return missing


def start_with_mlflow() -> str:
    """Return what a run says whose configuration wants MLflow."""
    from promptmeup.config import load
    from promptmeup.errors import ConfigError
    from promptmeup.training.pretrain import pretrain
    from promptmeup.training.settings import PretrainConfig

    try:
        pretrain(load(PretrainConfig, Path("configs/pretrain/tiny.yaml")))
    except ConfigError as error:
        return str(error)
    return ""


def train(tokenizer: str) -> dict[str, float]:
    """Take a step with all four losses on made-up tensors, at ZeRO 1."""
    from promptmeup.distributed.world import join
    from tests.support.training_steps import trainer
    from tests.unit.models import support

    config = support.tiny_config(text=support.tiny_text(tokenizer=tokenizer))
    metrics = trainer(join(), config, stage=1, rows=ROWS).step(ROWS)()
    return {name: value.item() for name, value in metrics.items()}


if __name__ == "__main__":
    hide_the_rest()
    seen = {"missing": import_all(), "mlflow": start_with_mlflow(), "step": train(sys.argv[1])}
    print(json.dumps(seen), flush=True)
