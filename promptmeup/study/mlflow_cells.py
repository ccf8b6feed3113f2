"""Finished cells as MLflow runs, children of one run for the study; each is there once, however often this runs."""

import json
import sys
from pathlib import Path
from typing import Any

from promptmeup.study.collect import place
from promptmeup.study.plan import Cell, Plan
from promptmeup.study.scoring import score_file
from promptmeup.tracking.backlog import clean_name
from promptmeup.tracking.mlflow_run import import_mlflow

_MARKER = "mlflow_run_id"


def log_cells(plan: Plan) -> int:
    """Log every finished cell that MLflow lacks, and return how many; a store that fails costs a warning alone."""
    tracking, out = plan.config.tracking, plan.config.out
    if tracking.uri is None:
        return 0
    todo = [
        cell
        for cell in plan.cells
        if (place(cell, out) / "cell.json").exists() and _logged(cell, out) is None
    ]
    if not todo:
        return 0
    logged = 0
    try:
        import_mlflow(tracking.uri)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=tracking.uri)
        found = client.get_experiment_by_name(tracking.experiment)
        experiment = found.experiment_id if found else client.create_experiment(tracking.experiment)
        parent = _parent(client, experiment, plan)
        for cell in todo:
            _log(client, experiment, parent, cell, plan)
            logged += 1
    except Exception as error:
        print(
            f"warning: MLflow at {tracking.uri} took {logged} of {len(todo)} cells ({error}); run the study again to "
            "send the rest",
            file=sys.stderr,
            flush=True,
        )
    return logged


def _logged(cell: Cell, out: Path) -> str | None:
    """Return the run of the cell as it is now, if MLflow has it."""
    try:
        noted: dict[str, str] = json.loads((place(cell, out) / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted["run"] if noted["stages"] == _identity(cell) else None


def _identity(cell: Cell) -> str:
    return " ".join(stage.folder.name for stage in cell.stages.values())


def _parent(client: Any, experiment: str, plan: Plan) -> str:
    marker = plan.config.out / _MARKER
    try:
        run = client.get_run(marker.read_text(encoding="utf-8").strip())
        if run.info.lifecycle_stage == "active":
            return str(run.info.run_id)
    except Exception:
        pass
    tags = {"mlflow.runName": plan.config.out.name, "mlflow.note.content": plan.config.question}
    run = client.create_run(experiment, tags=tags)
    client.set_terminated(run.info.run_id)
    marker.write_text(run.info.run_id, encoding="utf-8")
    return str(run.info.run_id)


def _log(client: Any, experiment: str, parent: str, cell: Cell, plan: Plan) -> None:
    from mlflow.entities import Metric, Param

    folder = place(cell, plan.config.out)
    tags = {"mlflow.runName": f"{cell.arm}, seed {cell.seed}", "mlflow.parentRunId": parent}
    run = client.create_run(experiment, tags=tags)
    params = {"arm": cell.arm, "seed": str(cell.seed)} | {
        f"stage.{name}": stage.folder.name for name, stage in cell.stages.items()
    }
    if cell.x is not None:
        params |= {"curve": str(cell.curve), "x": f"{cell.x:g}"}
    scores = {
        measure: score_file(folder / f"{measure}.jsonl", plan.chain.measures[measure].kind)
        for measure in cell.measures
    }
    now = run.info.start_time
    metrics = [Metric(clean_name(measure), score.value, now, 0) for measure, score in scores.items()]
    metrics += [
        Metric(clean_name(f"{measure}/{part}"), value, now, 0)
        for measure, score in scores.items()
        for part, value in score.parts.items()
    ]
    client.log_batch(
        run.info.run_id, metrics=metrics, params=[Param(name, value) for name, value in params.items()]
    )
    for file in sorted(folder.glob("*.jsonl")):
        client.log_artifact(run.info.run_id, str(file))
    client.set_terminated(run.info.run_id)
    text = json.dumps({"run": run.info.run_id, "stages": _identity(cell)})
    (folder / _MARKER).write_text(text, encoding="utf-8")
