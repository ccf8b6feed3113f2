"""A chain of commands that take no time: boxes with errors, and a vocabulary with errors beside given predictions."""

import json
from pathlib import Path
from typing import Any

import yaml

from promptmeup.config import load
from promptmeup.study.plan import Stage
from promptmeup.study.settings import StudyConfig

RUNS = "--- 2"
"""begins the line that every start of a stage writes into its log"""


def write_inputs(folder: Path) -> None:
    """Write what the chain begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    box = {"x0": 10, "y0": 10, "x1": 30, "y1": 40, "label": "person", "score": 0.9}
    lines = [{"image_path": f"{i}.jpg", "boxes": [box, box | {"x1": 40 + i}]} for i in range(5)]
    (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [f"Ada{i} Byron{i}\t{20 - i}\tentity" for i in range(10)]
    (folder / "entities.tsv").write_text("".join(f"{name}\n" for name in names))
    (folder / "predictions").mkdir(exist_ok=True)
    ranks = [
        {"direction": way, "rank": rank} for way in ("image_to_text", "text_to_image") for rank in range(12)
    ]
    (folder / "predictions/retrieval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ranks))


def chain(inputs: Path) -> dict[str, Any]:
    """Return a chain of three stages: the last one needs the second, which needs the first."""
    return {
        "stages": {
            "boxes": {
                "command": "make_box_errors",
                "set": [f"source={inputs}/boxes.jsonl", "out={self}/boxes.jsonl", "seed={seed}"],
            },
            "jitter": {
                "command": "make_box_errors",
                "set": ["source={boxes}/boxes.jsonl", "out={self}/boxes.jsonl", "rate=0.5", "seed={seed}"],
            },
            "names": {
                "command": "make_entity_errors",
                "set": [
                    f"source={inputs}/entities.tsv",
                    "out={self}/entities.tsv",
                    "rate=0.2",
                    "seed={seed}",
                ],
                "link": {"predictions": f"{inputs}/predictions", "boxes": "{jitter}"},
            },
        },
        "measures": {"retrieval": {"kind": "retrieval", "file": "{names}/predictions/retrieval.jsonl"}},
    }


def configured(folder: Path, *overrides: str, chain_of: dict[str, Any] | None = None) -> StudyConfig:
    """Return a study of two arms and two seeds, with its inputs, its chain and its store in `folder`."""
    write_inputs(folder / "inputs")
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain_of or chain(folder / "inputs"), sort_keys=False))
    values = {
        "out": str(folder / "study"),
        "store": str(folder / "store"),
        "title": "Boxes",
        "question": "Do boxes matter?",
        "chain": str(folder / "chain.yaml"),
        "seeds": [1, 2],
        "baseline": "half",
        "arms": [{"name": "half"}, {"name": "all boxes", "change": {"jitter": ["rate=1"]}}],
        "processes": 1,
        "tracking": {"uri": None},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return load(StudyConfig, folder / "study.yaml", overrides)


def runs(stage: Stage) -> int:
    """Return how often a stage was begun."""
    log = stage.beside("log")
    return log.read_text().count(RUNS) if log.exists() else 0


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` that does not tell the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".log", ".lock") and not path.name.endswith("done.json")
    }
