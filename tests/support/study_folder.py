"""A study's folder with made-up predictions: arms differ by how many names and relations they get wrong."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmeup.extraction.predictions import (
    Entity,
    EntityPrediction,
    RelationPrediction,
    write_predictions,
)
from promptmeup.shard_format import write_json

TYPES = ("LOC", "MISC", "ORG", "PER")
RELATIONS = ("None", "lives_in", "member_of", "peer")
LOSSES = ("image_text", "matching", "object_entity")


@dataclass(frozen=True)
class FakeArm:
    """An arm and the share of what it gets right."""

    name: str
    right: float
    curve: str | None = None
    x: float | None = None
    slug: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slug", "-".join(self.name.replace(".", "-").split()))


SMALL = (
    FakeArm("all losses", 0.85),
    FakeArm("without matching", 0.84),
    FakeArm("without $alignment$ & <b>", 0.6),
    FakeArm("boxes swapped 0.5", 0.7, curve="boxes swapped", x=0.5),
    FakeArm("boxes swapped 1", 0.65, curve="boxes swapped", x=1.0),
)


def write_study(
    folder: Path,
    *,
    arms: Sequence[FakeArm] = SMALL,
    seeds: Sequence[int] = (1, 2, 3),
    sentences: int = 40,
    claims: Sequence[Mapping[str, Any]] = (),
    losses: bool = True,
    **changed: Any,
) -> Path:
    """Write a study whose first arm is the baseline, all of its cells finished, and return `folder`."""
    has_curves = any(arm.curve for arm in arms)
    study = {
        "name": "made-up",
        "title": "A made-up study",
        "question": "Which loss helps?",
        "command": "python launch/study.py --config configs/study/made-up.yaml",
        "baseline": arms[0].name,
        "seeds": list(seeds),
        "x_label": "share that is wrong" if has_curves else None,
        "origin": 0.0 if has_curves else None,
        "measures": {kind: {"kind": kind} for kind in ("entities", "relations", "retrieval")},
        "arms": [{"name": a.name, "slug": a.slug, "curve": a.curve, "x": a.x} for a in arms],
        "claims": list(claims),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", study | changed)
    for arm in arms:
        for seed in seeds:
            write_cell(folder, arm, seed, sentences=sentences, losses=losses)
    return folder


def write_cell(folder: Path, arm: FakeArm, seed: int, *, sentences: int = 40, losses: bool = True) -> None:
    """Write a finished cell; cells of one seed have the same sentences."""
    cell = folder / "cells" / arm.slug / f"seed-{seed}"
    cell.mkdir(parents=True)
    world, model = random.Random(seed), random.Random(f"{arm.name} {seed}")
    right = arm.right + model.gauss(0, 0.01) + world.gauss(0, 0.02)
    write_predictions(cell / "entities.jsonl", [_entity(world, model, right) for _ in range(sentences)])
    write_predictions(cell / "relations.jsonl", [_relation(world, model, right) for _ in range(sentences)])
    queries = [
        (way, _rank(model, right)) for way in ("image_to_text", "text_to_image") for _ in range(sentences)
    ]
    _write_lines(cell / "retrieval.jsonl", [{"direction": way, "rank": rank} for way, rank in queries])
    write_json(cell / "ceiling.json", ceiling(seed))
    if losses:
        steps = [_step(model, step, right) for step in range(10, 2001, 10)]
        _write_lines(cell / "pretrain.jsonl", steps)
    stages, code = {"pretrain": f"pretrain-{arm.slug}-{seed}"}, {"pretrain": "0123456789ab"}
    facts = {"stages": stages, "seconds": {"pretrain": 1.5}, "code": code}
    write_json(cell / "cell.json", {"arm": arm.name, "seed": seed, **facts})


def ceiling(seed: int) -> dict[str, Any]:
    """Return the best scores that a seed's corpus allows."""
    words = 0.5 + seed / 200
    return {
        "split": "test",
        "entities": {name: {"F1": f1} for name, f1 in (("words", words), ("kinds", 0.8), ("image", 1.0))},
        "relations": {
            name: {"accuracy": share, "F1": 0.0} for name, share in (("words", words), ("image", 0.99))
        },
    }


def _entity(world: random.Random, model: random.Random, right: float) -> EntityPrediction:
    words = ("Ada", "Byron", "met", world.choice(("Kim", "Bo", "Paris", "Acme")), "today")
    gold = [world.choice(TYPES) for _ in range(2)]
    found = [kind if model.random() < right else model.choice((*TYPES, "")) for kind in gold]
    spans = ((0, 2), (3, 4))

    def tags(kinds: Sequence[str]) -> tuple[str, ...]:
        told = ["O"] * len(words)
        for kind, (start, end) in zip(kinds, spans, strict=True):
            if kind:
                told[start:end] = [f"{'B' if place == start else 'I'}-{kind}" for place in range(start, end)]
        return tuple(told)

    entities = tuple(Entity(*span, kind, 0.9) for kind, span in zip(found, spans, strict=True) if kind)
    return EntityPrediction("a", words, tags(gold), tags(found), entities, True)


def _relation(world: random.Random, model: random.Random, right: float) -> RelationPrediction:
    gold = world.choice(RELATIONS)
    relation = gold if model.random() < right else model.choice(RELATIONS)
    return RelationPrediction("b", ("Ada", "met", "Bo"), (0, 1), (2, 3), gold, relation, 0.9, True)


def _rank(model: random.Random, right: float) -> int:
    return 0 if model.random() < right - 0.2 else model.randrange(1, 40)


def _step(model: random.Random, step: int, right: float) -> dict[str, float]:
    values = {
        f"loss/{name}": round((1.5 - right) * (1 + 3 * 0.998**step) + model.gauss(0, 0.05), 4)
        for name in LOSSES
    }
    return {"step": step, "loss/total": round(sum(values.values()), 4), "lr": 1e-3, **values}


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
