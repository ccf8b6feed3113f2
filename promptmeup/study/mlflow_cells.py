"""Finished cells as MLflow runs, children of one run for the study."""

import json
import sys

from promptmeup.config import fingerprint
from promptmeup.study.collect import is_current, place
from promptmeup.study.plan import Cell, Plan
from promptmeup.study.scoring import score_file
from promptmeup.tracking.mlflow_children import Child, Children
from promptmeup.tracking.mlflow_run import reason_of
from promptmeup.tracking.provenance import redact


def log_cells(plan: Plan) -> int:
    """Log every finished cell that MLflow lacks, and return how many; a store that fails costs a warning alone."""
    tracking, out = plan.config.tracking, plan.config.out
    if tracking.uri is None:
        return 0
    children = Children(out, uri=tracking.uri, experiment=tracking.experiment)
    todo = [
        _child(cell, plan)
        for cell in plan.cells
        if is_current(cell, out) and not children.has(_key(cell), _identity(cell, plan))
    ]
    if not todo:
        return 0
    try:
        children.send(todo, name=out.name, note=plan.config.question)
    except Exception as error:
        print(
            f"warning: MLflow at {redact(tracking.uri)} does not take the study's cells ({reason_of(error)}); the same "
            "command with report_only=true sends them",
            file=sys.stderr,
            flush=True,
        )
        return 0
    return len(todo)


def _key(cell: Cell) -> str:
    return f"{cell.slug}/seed-{cell.seed}"


def _identity(cell: Cell, plan: Plan) -> str:
    """Return what stands for all that the cell's folder says of it, when its stages ended among it.

    The names of the stages alone would do only until somebody empties the store and runs the study again.
    """
    return fingerprint(json.loads((place(cell, plan.config.out) / "cell.json").read_text(encoding="utf-8")))


def _child(cell: Cell, plan: Plan) -> Child:
    folder = place(cell, plan.config.out)
    params = {"arm": cell.arm, "seed": str(cell.seed)} | {
        f"stage.{name}": stage.folder.name for name, stage in cell.stages.items()
    }
    if cell.x is not None:
        params |= {"curve": str(cell.curve), "x": f"{cell.x:g}"}
    metrics = {}
    for measure in cell.measures:
        score = score_file(folder / f"{measure}.jsonl", plan.chain.measures[measure].kind)
        metrics[measure] = score.value
        metrics |= {f"{measure}/{part}": value for part, value in score.parts.items()}
    return Child(
        _key(cell),
        _identity(cell, plan),
        f"{cell.arm}, seed {cell.seed}",
        params,
        metrics,
        sorted(folder.glob("*.jsonl")),
    )
