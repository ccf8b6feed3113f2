"""What is known of a model, from its run's folder, as far as it may be shown to everybody."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptmeup.errors import CheckpointError
from promptmeup.export.source import Source
from promptmeup.extraction.report import MAIN_SCORES, percent
from promptmeup.tracking import journal
from promptmeup.tracking.provenance import last_environment, redact
from promptmeup.tracking.settings import flatten


@dataclass(frozen=True)
class Metric:
    """A number that was measured on a split."""

    data: str
    split: str
    name: str
    value: float


@dataclass(frozen=True)
class Facts:
    """For the card, and for config.json; without names of users, machines and folders above the last two."""

    run: str
    weights: str
    """best, model, or a checkpoint's tag"""
    settings: dict[str, str]
    """the run's configuration, a.b -> value"""
    data: tuple[dict[str, str], ...]
    """a row for each split or file of labels"""
    metrics: tuple[Metric, ...]
    measured: str
    """on which weights"""
    versions: dict[str, str]
    commit: str | None
    trained_on: str
    """hardware"""


def read_facts(source: Source) -> Facts:
    """Read the run's folder; what is absent in it is left out."""
    environment = last_environment(source.run) or {}
    git = environment.get("git") or {}
    commit = git.get("commit")
    gpus = environment.get("gpus") or []
    hardware = f"{len(gpus)} x {gpus[0]}" if gpus else "CPU"
    pretrained = source.kind == "pretrained"
    data, (metrics, measured) = (
        (_pretraining_data(source.run), _retrieval(source))
        if pretrained
        else (_label_files(source), _extraction_scores(source))
    )
    settings = {
        name: value for name, value in source.config.items() if name not in ("out", "tracking", "seeds")
    }
    return Facts(
        run=source.run.resolve().name if pretrained else "/".join(source.run.resolve().parts[-2:]),
        weights=source.name,
        settings=flatten(public(settings)),
        data=data,
        metrics=metrics,
        measured=measured,
        versions={"python": environment.get("python", "?"), **environment.get("packages", {})},
        commit=f"{commit} with uncommitted changes" if git.get("dirty") else commit,
        trained_on=f"{environment.get('world_size', 1)} processes, {hardware} on the first machine",
    )


def public(value: Any) -> Any:
    """Return `value` with paths and addresses cut to their last two parts: the folders above are nobody's business."""
    if isinstance(value, Mapping):
        return {name: public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # a corpus is named "kind: folder"
    kind, text = re.fullmatch(r"(\w+: )?(.*)", redact(value), re.DOTALL).groups("")  # type: ignore[union-attr]
    is_path = text.startswith(("/", "~", "./", "../")) or "://" in text or text.count("/") > 1
    return kind + ("/".join([part for part in re.split(r"/+", text) if part][-2:]) if is_path else text)


def steps_of(source: Source) -> int | None:
    """Return after how many steps a checkpoint was written; None of a saved model, which does not say it."""
    if not source.is_checkpoint:
        return None
    path = source.weights / "run_state.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; choose another checkpoint") from error


def _pretraining_data(run: Path) -> tuple[dict[str, str], ...]:
    found = _json(run / "description" / "data.json") or []
    names = ("name", "use", "photos", "pairs", "fingerprint", "labels")
    return tuple({name: str(row.get(name) or "none") for name in names} for row in found)


def _label_files(source: Source) -> tuple[dict[str, str], ...]:
    facts = (_json(source.weights / "config.json") or {}).get("source", {})
    corpus = public(str(facts.get("data", "")))
    return tuple(
        {"corpus": corpus, "file of labels": name, "SHA-256": digest}
        for name, digest in facts.get("labels_sha256", {}).items()
    )


def _retrieval(source: Source) -> tuple[tuple[Metric, ...], str]:
    """Return the evaluation that saved best/, or the last one up to what is exported."""
    found = _evaluations(source.run)
    last = steps_of(source)
    if last is not None:
        found = {step: values for step, values in found.items() if step <= last}
    if not found:
        return (), ""
    step = max(found)
    if source.name == "best":
        # the first of equals: a later one did not replace it
        step = max(found, key=lambda step: (found[step].get("mean_recall", -1), -step))
    of = "" if last in (None, step) else f", of weights after {last}"
    val = source.config.get("data", {}).get("val") or ""
    corpus = "/".join(str(val).rstrip("/").split("/")[-2:])
    metrics = tuple(Metric(corpus, "validation", name, value) for name, value in found[step].items())
    return metrics, f"measured after {step} steps{of}"


def _evaluations(run: Path) -> dict[int, dict[str, float]]:
    path = run / "journal.jsonl"
    return journal.metrics(path, event="evaluation") if path.exists() else {}


def _extraction_scores(source: Source) -> tuple[tuple[Metric, ...], str]:
    facts = (_json(source.weights / "config.json") or {}).get("source", {})
    corpus = public(str(facts.get("data", ""))).partition(":")[0]
    result = _json(source.run / "result.json")
    if result is None:
        found = {"f1": facts["val_f1"]} if "val_f1" in facts else {}
        return tuple(
            Metric(corpus, "val", name, value) for name, value in found.items()
        ), "of an unfinished run"
    metrics = [Metric(corpus, "val", "f1", result["val_f1"])] if "val" not in result["splits"] else []
    metrics += [
        Metric(corpus, split, name, scores[name])
        for split, scores in result["splits"].items()
        for name in MAIN_SCORES
        if name in scores
    ]
    measured = f"the best of {result['epochs']} epochs by F1 on val is number {result['best_epoch']}"
    return tuple(metrics), measured + _over_seeds(source.run.resolve().parent)


def _over_seeds(run: Path) -> str:
    everyone = _json(run / "result.json")
    if everyone is None or len(everyone.get("seeds", ())) < 2:
        return ""
    scores = [
        f"{split} {percent(facts['scores']['f1'])}"
        for split, facts in everyone["splits"].items()
        if "f1" in facts["scores"]
    ]
    return f"; F1 in percent over {len(everyone['seeds'])} seeds: {', '.join(scores)}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
