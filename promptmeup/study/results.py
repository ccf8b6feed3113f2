"""A study's folder: what was asked (study.json), and what its finished cells scored.

    STUDY/study.json                        question, arms, seeds, measures, claims
    STUDY/cells/ARM_SLUG/seed-N/cell.json   written last: a cell without it is not finished
    STUDY/cells/ARM_SLUG/seed-N/MEASURE.jsonl     what the cell's model predicted
    STUDY/cells/ARM_SLUG/seed-N/ceiling.json      the best that its corpus allows, where that is known

Scores are computed from the predictions, whatever else a cell says of itself.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from promptmeup.errors import StudyError
from promptmeup.study.effects import MARGIN, Expect
from promptmeup.study.scoring import Kind, Score, ceiling_scores, score_file


@dataclass(frozen=True)
class Measure:
    """Something that is scored on test."""

    kind: Kind
    tests: str | None = None
    """stage whose folder holds the tests' photos; None: the predictions say all that is asked"""


@dataclass(frozen=True)
class Arm:
    """One way to do it."""

    name: str
    slug: str
    """its folder"""
    curve: str | None = None
    """the curve that it is a point of"""
    x: float | None = None
    """where on the curve"""


@dataclass(frozen=True)
class Claim:
    """That one arm scores higher than another, or the same."""

    claim: str
    first: str
    second: str
    measure: str
    expect: Expect = "higher"
    margin: float = MARGIN
    """points below which a difference counts as none"""


@dataclass(frozen=True)
class Study:
    """What was asked."""

    name: str
    title: str
    question: str
    command: str
    baseline: str
    """the arm that all others are held against"""
    seeds: tuple[int, ...]
    measures: dict[str, Measure]
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...] = ()
    x_label: str | None = None
    origin: float | None = None
    """where the baseline stands on every curve"""
    stages: dict[str, dict[str, str]] = field(default_factory=dict)
    """SLUG/seed-N -> stage -> its folder: those that a cell must have been made by"""

    def tests_folder(self, arm: str, seed: int, measure: str) -> str | None:
        """Return the name of the folder that a cell's tests come from; None where the study does not tell."""
        (slug,) = (one.slug for one in self.arms if one.name == arm)
        stage = self.measures[measure].tests
        return self.stages.get(f"{slug}/seed-{seed}", {}).get(stage) if stage else None

    def same_for_all_seeds(self) -> list[str]:
        """Return the stages that are one and the same at all of several seeds of an arm: no seed replicates them."""
        found: set[str] = set()
        for arm in self.arms if len(self.seeds) > 1 else ():
            cells = [self.stages.get(f"{arm.slug}/seed-{seed}", {}).items() for seed in self.seeds]
            found |= dict(set(cells[0]).intersection(*cells[1:])).keys()
        return sorted(found)


@dataclass(frozen=True)
class Missing:
    """A cell, or a measure of one, that is not there."""

    arm: str
    seed: int
    what: str


@dataclass(frozen=True)
class StageFacts:
    """How a stage was run."""

    seconds: float
    code: str | None
    """the version of this package; None: it was not recorded"""


@dataclass(frozen=True)
class Results:
    """What a study's cells scored, in percent."""

    scores: dict[tuple[str, int, str], Score]
    """(arm, seed, measure)"""
    ceilings: dict[tuple[str, int, str], dict[str, float]]
    """(arm, seed, measure) -> oracle -> score"""
    missing: tuple[Missing, ...]
    finished: frozenset[tuple[str, int]] = field(default=frozenset())
    """(arm, seed)"""
    stages: dict[str, StageFacts] = field(default_factory=dict)
    """those of the finished cells, by their folder's name; cells share them"""

    def by_seed(self, arm: str, measure: str) -> dict[int, float]:
        """Return the scores of an arm."""
        return {s: score.value for (a, s, m), score in self.scores.items() if (a, m) == (arm, measure)}

    def part_by_seed(self, arm: str, measure: str, part: str) -> dict[int, float]:
        """Return an arm's scores on one type or relation."""
        found = {s: score.parts for (a, s, m), score in self.scores.items() if (a, m) == (arm, measure)}
        return {seed: parts[part] for seed, parts in found.items() if part in parts}


def cell_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Return where a cell lies in the study's folder."""
    return folder / "cells" / arm.slug / f"seed-{seed}"


def read_study(folder: Path) -> Study:
    """Return what study.json says.

    Raises:
        StudyError: it is absent or malformed, or names an arm or a measure that it does not have.
    """
    path = folder / "study.json"
    try:
        study = TypeAdapter(Study).validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"{folder} holds no study: cannot read study.json ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise StudyError(f"{path}: {place}: {first['msg']}; write the study anew") from error
    names = [arm.name for arm in study.arms]
    _refuse(path, "arms are named twice", _twice(names))
    _refuse(path, "arms share a folder", _twice(arm.slug for arm in study.arms))
    _refuse(path, "seeds are listed twice", _twice(map(str, study.seeds)))
    called = {study.baseline, *(arm for claim in study.claims for arm in (claim.first, claim.second))}
    _refuse(path, "baseline or claims name arms that are not there", called - set(names))
    measures = {claim.measure for claim in study.claims}
    _refuse(path, "claims name measures that are not there", measures - study.measures.keys())
    files = [*study.measures, *(arm.slug for arm in study.arms)]
    _refuse(path, "not fit to name a file", [name for name in files if Path(name).name != name])
    return study


def read_scores(folder: Path, study: Study) -> Results:
    """Return what the finished cells scored, and list what is missing.

    Raises:
        CorpusError: predictions are malformed or have no gold labels.
        StudyError: another file is malformed, or a cell is another one's.
    """
    scores: dict[tuple[str, int, str], Score] = {}
    ceilings: dict[tuple[str, int, str], dict[str, float]] = {}
    missing, finished = [], set()
    stages: dict[str, StageFacts] = {}
    for arm in study.arms:
        for seed in study.seeds:
            cell = cell_folder(folder, arm, seed)
            if not (cell / "cell.json").exists():
                missing.append(Missing(arm.name, seed, "the cell is not finished"))
                continue
            own = _own(cell / "cell.json", arm, seed)
            wanted = study.stages.get(f"{arm.slug}/seed-{seed}")
            if wanted is not None and own.get("stages") != wanted:
                missing.append(Missing(arm.name, seed, "what is there was made with other settings"))
                continue
            stages |= _stages(own)
            finished.add((arm.name, seed))
            best = _json(cell / "ceiling.json") if (cell / "ceiling.json").exists() else {}
            for name, measure in study.measures.items():
                key = arm.name, seed, name
                if found := ceiling_scores(cell / "ceiling.json", best, measure.kind):
                    ceilings[key] = found
                if (path := cell / f"{name}.jsonl").exists():
                    scores[key] = score_file(path, measure.kind)
                else:
                    missing.append(Missing(arm.name, seed, f"{path.name} is not there"))
    return Results(scores, ceilings, tuple(missing), frozenset(finished), stages)


def _own(path: Path, arm: Arm, seed: int) -> dict[str, Any]:
    cell = _json(path)
    if (cell.get("arm"), cell.get("seed")) != (arm.name, seed):
        raise StudyError(
            f"{path} is of arm {cell.get('arm')!r} at seed {cell.get('seed')!r}, and belongs to "
            f"{arm.name!r} at seed {seed}: delete the cell's folder and run the study again"
        )
    return cell


def _stages(cell: dict[str, Any]) -> dict[str, StageFacts]:
    seconds, code = cell.get("seconds", {}), cell.get("code", {})
    return {
        folder: StageFacts(float(seconds.get(name, 0)), code.get(name))
        for name, folder in cell.get("stages", {}).items()
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise StudyError(f"{path} is not JSON: {error}; delete the cell's folder and run it again") from error
    if not isinstance(value, dict):
        raise StudyError(f"{path} must hold a JSON object; delete the cell's folder and run it again")
    return value


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _refuse(path: Path, what: str, names: Iterable[str]) -> None:
    if listed := ", ".join(f"'{name}'" for name in sorted(names)):
        raise StudyError(f"{path}: {what}: {listed}")
