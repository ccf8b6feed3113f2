"""What a person sets about a study: a chain of commands, and the arms in which it is run differently."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from promptmeup.config import Config
from promptmeup.study.effects import MARGIN, Expect
from promptmeup.study.scoring import Kind
from promptmeup.tracking.settings import refuse_folder

Command = Literal[
    "synthesize",
    "pack",
    "pretrain",
    "label",
    "finetune",
    "evaluate",
    "make_box_errors",
    "make_entity_errors",
    "shuffle_labels",
]


class StageConfig(Config):
    """One command of the chain, as one would type it.

    In `set` and `link`, {seed} stands for the cell's seed, {self} for the stage's own folder and {NAME} for that of an
    earlier stage.
    """

    like: str | None = None
    """an earlier stage whose command, file, `set` and `link` this one has, too, its own after them"""
    command: Command | None = None
    config: Path | None = None
    """the command's file; null: `set` says all"""
    set: tuple[str, ...] = ()
    """a.b=c"""
    link: dict[str, str] = Field(default_factory=dict)
    """{name in the stage's folder: an earlier stage's folder}, as hard links: for commands that add to what is there"""
    ranks: int = Field(default=1, ge=1)
    """processes of this machine that share a pre-training"""
    seconds: float = Field(default=30.0, gt=0)
    """about how long it takes, until one of its kind has been run"""


class MeasureConfig(Config):
    """What of a cell is scored."""

    kind: Kind
    file: str
    """predictions on test, such as "{entities}/seed-{seed}/predictions-test.jsonl" """
    sd: float = Field(default=2.0, gt=0)
    """about how much paired differences scatter over seeds, in points, for what is said before anything has run"""
    tests: str | None = None
    """stage whose folder holds the tests' photos, where the predictions do not tell them: they hold words and labels
    alone, and the same words may go with other photos. Retrieval's ranks name their split, photos and all."""


class ChainConfig(Config):
    """The commands of a cell, in order, and what comes out."""

    stages: dict[str, StageConfig] = Field(min_length=1)
    measures: dict[str, MeasureConfig] = Field(min_length=1)
    ceiling: str | None = None
    """file of the best scores that the corpus allows, such as "{world}/extraction/ceiling.json" """
    journal: str | None = None
    """journal of the pre-training whose losses the report draws"""

    def whole(self, name: str) -> StageConfig:
        """Return a stage with what it has of the one that it is like."""
        stage = self.stages[name]
        if stage.like is None:
            return stage
        of = self.whole(stage.like)
        return stage.model_copy(
            update={
                "command": stage.command or of.command,
                "config": stage.config or of.config,
                "set": (*of.set, *stage.set),
                "link": of.link | stage.link,
            }
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = list(self.stages)
        for position, (name, stage) in enumerate(self.stages.items()):
            if stage.like is not None and stage.like not in names[:position]:
                raise ValueError(f"stage {name} is like {stage.like}, which is no stage before it")
            command = self.whole(name).command
            if command is None:
                raise ValueError(f"stage {name} has no command: give command, or like")
            if stage.ranks > 1 and command != "pretrain":
                raise ValueError(f"stage {name}: {command} runs on one process: leave ranks out")
        wrong = [
            n for n in self.stages if n in ("seed", "self", "x") or not re.fullmatch(r"[a-z][a-z0-9_]*", n)
        ]
        if wrong:
            raise ValueError(
                f"stages cannot be called {', '.join(wrong)}: use lower-case letters, digits and _, and none of seed, "
                "self, x"
            )
        if absent := sorted({m.tests for m in self.measures.values() if m.tests} - self.stages.keys()):
            raise ValueError(
                f"measures have their tests from {', '.join(absent)}, and the stages are {', '.join(names)}"
            )
        # they name files of a cell's folder
        if wrong := [n for n in self.measures if n == "pretrain" or not re.fullmatch(r"[a-z][a-z0-9_-]*", n)]:
            raise ValueError(
                f"measures cannot be called {', '.join(wrong)}: use lower-case letters, digits, _, -; not pretrain"
            )
        return self


Change = dict[str, tuple[str, ...]]
"""{stage: a.b=c ...}, after those of the chain"""


class ArmConfig(Config):
    """One way to do it."""

    name: str = Field(min_length=1)
    change: Change = Field(default_factory=dict)


class CurveConfig(Config):
    """Arms that differ by a number, {x} in their changes."""

    name: str = Field(min_length=1)
    values: tuple[float, ...] = Field(min_length=1)
    change: Change


class ClaimConfig(Config):
    """That one arm scores higher than another, or the same within `margin` points."""

    claim: str = Field(min_length=1)
    first: str
    second: str
    measure: str
    expect: Expect = "higher"
    margin: float = Field(default=MARGIN, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.first == self.second:
            raise ValueError(f"'{self.first}' is compared with itself: name two arms")
        return self


class StudyTracking(Config):
    """Where cells go as MLflow runs when they are finished, children of the study's own run."""

    uri: str | None = "sqlite:///mlflow.db"
    experiment: str = Field(default="studies", min_length=1)

    _uri = field_validator("uri")(refuse_folder)


class StudyConfig(Config):
    """A question, and the cells that answer it: every arm at every seed."""

    out: Path
    """folder: cells/ with the predictions, report.md, report.html"""
    title: str
    question: str
    chain: Path
    """file of the chain, such as configs/study/chain_tiny.yaml"""
    chain_set: tuple[str, ...] = ()
    """a.b=c for the chain's file"""
    store: Path = Path("studies/stages")
    """folder of finished stages, which cells and studies share"""
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    baseline: str
    """the arm that the others are held against"""
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    change: Change = Field(default_factory=dict)
    """of every arm"""
    curves: tuple[CurveConfig, ...] = ()
    origin: float | None = None
    """where the baseline stands on every curve"""
    x_label: str | None = None
    claims: tuple[ClaimConfig, ...] = ()
    measures: tuple[str, ...] = ()
    """those of the chain that count; none: all"""
    processes: int | None = Field(default=None, ge=1, le=256)
    """cells at once; null: one for each core, or for each GPU"""
    report_only: bool = False
    """write the report from what is there"""
    tracking: StudyTracking = StudyTracking()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [name for name, _, _, _ in self.all_arms()]
        known = set(names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"arms of the same name: {', '.join(twice)}")
        called = {self.baseline, *(arm for claim in self.claims for arm in (claim.first, claim.second))}
        if unknown := sorted(called - known):
            raise ValueError(f"baseline or claims name arms that are not there: {', '.join(unknown)}")
        for what, values in (("seed", self.seeds), ("measure", self.measures)):
            if len(set(values)) < len(values):
                raise ValueError(f"a {what} is named twice")
        return self

    def all_arms(self) -> list[tuple[str, Change, str | None, float | None]]:
        """Return (name, changes, curve, x) of every arm, those of curves after the others."""
        found: list[tuple[str, Change, str | None, float | None]] = [
            (arm.name, arm.change, None, None) for arm in self.arms
        ]
        for curve in self.curves:
            for x in curve.values:
                written = str(int(x)) if x.is_integer() else repr(x)
                change = {
                    stage: tuple(text.replace("{x}", written) for text in texts)
                    for stage, texts in curve.change.items()
                }
                found.append((f"{curve.name} {written}", change, curve.name, x))
        return found
