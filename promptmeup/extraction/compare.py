"""Two systems' predictions of one split, compared: F1 of both, their difference, and how sure it is."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from promptmeup.config import Config
from promptmeup.errors import CorpusError
from promptmeup.extraction.bootstrap import Comparison, System, paired_bootstrap
from promptmeup.extraction.predictions import Predictions, RelationPrediction, read_predictions
from promptmeup.shard_format import write_json
from promptmeup.tracking.console import table


def _listed(value: Any) -> Any:
    """Return a single path as a list of one; a tuple, since after a function strict mode takes no list for one."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


def _distinct(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if not paths or twice:
        raise ValueError(
            f"{', '.join(twice)} is named twice; name the file of each seed once"
            if twice
            else "no file is named"
        )
    return paths


Files = Annotated[tuple[Path, ...], BeforeValidator(_listed), AfterValidator(_distinct)]


class CompareConfig(Config):
    """Which predictions are compared, and how."""

    first: Files
    """files of predictions of one system on one split, one a seed; a single path will do"""
    second: Files
    """of the other system, on the same split"""
    none: str | None = "None"
    """the relation that says that there is none; null where the corpus has no such label. Unused for entities."""
    resamples: int = Field(default=10_000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """of the interval"""
    seed: int = Field(default=0, ge=0)
    json_file: Path | None = None
    """where the numbers are written besides the screen"""


def compare(config: CompareConfig) -> None:
    """Print F1 of both systems and the interval of their difference.

    Raises:
        CorpusError: a file is malformed, or the files are not of the same sentences.
    """
    first = {str(path): read_predictions(path) for path in config.first}
    second = {str(path): read_predictions(path) for path in config.second}
    for name, predictions in {**first, **second}.items():
        _require_none(name, predictions, config.none)
    found = paired_bootstrap(
        first,
        second,
        none=config.none,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
    )
    print(table([_row("first", found.first), _row("second", found.second)]))
    print(sentence(found))
    if config.json_file is not None:
        config.json_file.parent.mkdir(parents=True, exist_ok=True)
        settings = config.model_dump(mode="json", include={"none", "seed"})
        write_json(config.json_file, asdict(found) | settings | {"excludes_zero": found.excludes_zero})


def sentence(found: Comparison) -> str:
    """Return the result in words; differences in points, hundredths of F1."""
    low, high, points = (100 * value for value in (found.low, found.high, found.difference))
    verdict = "excludes 0" if found.excludes_zero else "includes 0: no difference is shown"
    text = (
        f"first - second is {points:+.2f} points of F1 over {found.sentences} sentences; the "
        f"{100 * found.confidence:g} % interval {low:+.2f} to {high:+.2f} {verdict} (p = {found.p:.2g})"
    )
    single = [
        side for side, system in (("first", found.first), ("second", found.second)) if len(system.files) == 1
    ]
    if single:
        text += f"; {' and '.join(single)}: one file, so the noise of seeds is not in it"
    return text + "."


def _row(side: str, system: System) -> dict[str, Any]:
    values = list(system.files.values())
    return {
        "system": side,
        "files": len(values),
        "F1 (%)": f"{100 * system.f1:.2f}",
        "lowest": f"{100 * min(values):.2f}",
        "highest": f"{100 * max(values):.2f}",
    }


def _require_none(name: str, predictions: Predictions, none: str | None) -> None:
    """Assert that `none` is among the gold relations: misspelt, it would count as a relation that is found."""
    relations = _gold_relations(predictions)
    if none is None or not relations or none in relations:
        return
    raise CorpusError(
        f"{name}: none = '{none}' is no gold relation; they are {', '.join(sorted(relations))}. "
        "Set none to the one that says that there is no relation, or none=null where each is one"
    )


def _gold_relations(predictions: Sequence[Any]) -> set[str]:
    return {p.gold for p in predictions if isinstance(p, RelationPrediction) and p.gold is not None}
