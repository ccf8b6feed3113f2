"""Finished cells become part of the study's folder: what they predicted, and what a reader needs beside it."""

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from promptmeup.errors import StudyError
from promptmeup.shard_format import write_atomically, write_json
from promptmeup.study.plan import Cell, Plan, as_json
from promptmeup.tracking.mlflow_run import lock_run


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


def is_current(cell: Cell, out: Path) -> bool:
    """Return whether what the study's folder holds of a cell was made with its present settings."""
    made = _written(place(cell, out))
    return made is not None and made.get("stages") == _names(cell)


def _names(cell: Cell) -> dict[str, str]:
    return {name: stage.folder.name for name, stage in cell.stages.items()}


def alone(out: Path) -> AbstractContextManager[None]:
    """Let one process at a time touch the study's folder, on whatever machine."""
    return lock_run(out)


def collect(plan: Plan) -> list[Cell]:
    """Copy what finished cells predicted to the study's folder, `alone`; return those that are new there.

    Raises:
        StudyError: a stage is done, and a file that the chain names is not there.
    """
    found = []
    for cell in plan.cells:
        folder = place(cell, plan.config.out)
        files = {f"{measure}.jsonl": file for measure, file in cell.measures.items()}
        files |= {"ceiling.json": cell.ceiling} if cell.ceiling else {}
        journal = {"pretrain.jsonl": cell.journal} if cell.journal else {}
        if not is_finished(cell):
            continue
        done = {name: json.loads(stage.done.read_text()) for name, stage in cell.stages.items()}
        content = {
            "arm": cell.arm,
            "seed": cell.seed,
            "stages": _names(cell),
            "files": {
                name: str(file.relative_to(plan.config.store.absolute()))
                for name, file in (files | journal).items()
            },
            # a stage that was run anew, in a store that somebody emptied, has another end
            **{
                fact: {name: one.get(fact) for name, one in done.items()}
                for fact in ("seconds", "ended", "code")
            },
        }
        if _written(folder) == content:
            continue
        (folder / "cell.json").unlink(
            missing_ok=True
        )  # of other settings: the cell is not finished meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            for name, file in files.items():
                shutil.copyfile(file, folder / name)
            for name, file in journal.items():
                write_atomically(folder / name, "".join(_losses(file)).encode())
        except FileNotFoundError as error:
            raise StudyError(
                f"arm '{cell.arm}', seed {cell.seed}: {error.filename} is not there, though its stage is done: correct "
                f"the file's name in {plan.config.chain}, or delete the stage's folder and its .done.json"
            ) from error
        write_json(folder / "cell.json", content)
        found.append(cell)
    return found


def _written(folder: Path) -> dict[str, object] | None:
    """Return what a cell's folder says that it holds; None where it says nothing."""
    try:
        return dict(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


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
