"""torch.distributed and deepspeed stay inside promptmeup/distributed; ultralytics inside one module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {
    "torch.distributed": "promptmeup/distributed/",
    "deepspeed": "promptmeup/distributed/",
    "ultralytics": "promptmeup/packing/detector.py",
    "spacy": "promptmeup/packing/entities.py",
    "mlflow": "promptmeup/tracking/mlflow",  # mlflow.py, mlflow_run.py
}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("library", HOMES)
def test_library_stays_at_home(library: str) -> None:
    files = [p for folder in ("promptmeup", "launch", "shards") for p in (ROOT / folder).rglob("*.py")]
    assert files
    strangers = [
        str(path.relative_to(ROOT))
        for path in files
        if not str(path.relative_to(ROOT)).startswith(HOMES[library])
        and any(n == library or n.startswith(library + ".") for n in imported(ast.parse(path.read_text())))
    ]
    assert not strangers, f"{library} may only be used in {HOMES[library]}"
