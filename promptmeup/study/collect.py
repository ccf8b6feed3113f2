"""Finished cells become part of the study's folder: what they predicted, and what a reader needs beside it."""

import json
import shutil
from pathlib import Path

from promptmeup.shard_format import write_atomically, write_json
from promptmeup.study.plan import Cell, Plan, as_json


def write_question(plan: Plan, command: str) -> None:
    """Write study.json."""
    plan.config.out.mkdir(parents=True, exist_ok=True)
    write_json(plan.config.out / "study.json", as_json(plan, command))


def place(cell: Cell, out: Path) -> Path:
    """Return the folder of a cell."""
    return out / "cells" / cell.slug / f"seed-{cell.seed}"


def is_finished(cell: Cell) -> bool:
    """Return whether every stage of the cell is done."""
    return all(stage.done.exists() for stage in cell.stages.values())


def collect(plan: Plan) -> list[Cell]:
    """Copy what finished cells predicted to the study's folder; return those that are new there."""
    found = []
    for cell in plan.cells:
        folder = place(cell, plan.config.out)
        content = {
            "arm": cell.arm,
            "seed": cell.seed,
            "stages": {name: stage.folder.name for name, stage in cell.stages.items()},
        }
        if not is_finished(cell) or _is_there(folder / "cell.json", content):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cell.json").unlink(
            missing_ok=True
        )  # of other settings: the cell is not finished meanwhile
        for measure, file in cell.measures.items():
            shutil.copyfile(file, folder / f"{measure}.jsonl")
        if cell.ceiling is not None:
            shutil.copyfile(cell.ceiling, folder / "ceiling.json")
        if cell.journal is not None:
            write_atomically(folder / "pretrain.jsonl", "".join(_losses(cell.journal)).encode())
        seconds = {name: json.loads(stage.done.read_text())["seconds"] for name, stage in cell.stages.items()}
        write_json(folder / "cell.json", content | {"seconds": seconds})
        found.append(cell)
    return found


def _is_there(path: Path, content: dict[str, object]) -> bool:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {name: earlier.get(name) for name in content} == content


def _losses(journal: Path) -> list[str]:
    """Return the lines of a journal's steps, their losses alone."""
    found: dict[int, str] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # half a line of a run that was killed
        losses = {name: value for name, value in entry.items() if name.startswith("loss/")}
        if losses:
            losses["loss/total"] = entry["loss"]
            found[entry["step"]] = json.dumps({"step": entry["step"], **losses}) + "\n"
    return [line for _, line in sorted(found.items())]
