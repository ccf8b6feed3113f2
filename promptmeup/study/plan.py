"""A study's cells as stages: each with its whole configuration, the folder that this names, and what it waits for."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from promptmeup.config import Config, fingerprint, load
from promptmeup.errors import ConfigError
from promptmeup.study.commands import SCHEMAS
from promptmeup.study.settings import ChainConfig, Change, Command, StageConfig, StudyConfig
from promptmeup.study.sources import content_of, find_sources

_NAME = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Stage:
    """One command with its whole configuration; equal ones of several cells and studies are one stage."""

    name: str
    command: Command
    folder: Path
    """named by all that the result depends on; beside it FOLDER.done.json when it is finished, and a log"""
    config: Config
    links: Mapping[str, Path]
    needs: tuple[Path, ...]
    """folders of stages"""
    ranks: int
    seconds: float
    sources: Mapping[Path, str] = field(default_factory=dict)
    """files and folders from outside the store that it reads, and their content (see sources.py)"""

    @property
    def done(self) -> Path:
        return self.beside("done.json")

    def beside(self, suffix: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{suffix}")


@dataclass(frozen=True)
class Cell:
    """One arm at one seed."""

    arm: str
    slug: str
    curve: str | None
    x: float | None
    seed: int
    stages: dict[str, Stage]
    """by name, in order; those alone that a measure needs"""
    measures: dict[str, Path]
    """files of predictions"""
    ceiling: Path | None
    journal: Path | None


@dataclass(frozen=True)
class Plan:
    """All cells of a study."""

    config: StudyConfig
    chain: ChainConfig
    cells: tuple[Cell, ...]

    @property
    def stages(self) -> list[Stage]:
        """Every stage once, each after those that it needs; seed by seed, so that whole cells finish early."""
        found: dict[Path, Stage] = {}
        for cell in sorted(self.cells, key=lambda cell: self.config.seeds.index(cell.seed)):
            for stage in cell.stages.values():
                found.setdefault(stage.folder, stage)
        return list(found.values())


def make_plan(config: StudyConfig) -> Plan:
    """Return the cells of a study.

    Raises:
        ConfigError: the chain, a stage's configuration or a name in it is wrong; the arm is named.
    """
    chain = load(ChainConfig, config.chain, config.chain_set)
    measures = config.measures or tuple(chain.measures)
    if unknown := sorted(set(measures) - chain.measures.keys()):
        raise ConfigError(
            f"{config.chain} has no measure {', '.join(unknown)}; it has {', '.join(chain.measures)}"
        )
    if unknown := sorted({claim.measure for claim in config.claims} - set(measures)):
        raise ConfigError(f"claims name measures that do not count: {', '.join(unknown)}")
    cells = []
    # arms and seeds share most of their settings, and the files that these name
    load_once, content_once = cache(_load), cache(content_of)
    slugs: dict[str, str] = {}
    for name, change, curve, x in config.all_arms():
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "arm"
        if slug in slugs:
            raise ConfigError(
                f"the arms '{slugs[slug]}' and '{name}' would share the folder {slug}: rename one"
            )
        slugs[slug] = name
        for seed in config.seeds:
            try:
                stages = _stages(config, chain, change, seed, load_once, content_once)
                names = {n: str(stage.folder) for n, stage in stages.items()} | {"seed": str(seed)}
                files = {m: Path(_filled(chain.measures[m].file, names, f"measure {m}")) for m in measures}
                ceiling, journal = (
                    Path(_filled(text, names, what)) if text else None
                    for what, text in (("ceiling", chain.ceiling), ("journal", chain.journal))
                )
                wanted = _wanted(files | ({"ceiling": ceiling} if ceiling else {}), stages)
            except ConfigError as error:
                raise ConfigError(f"arm '{name}': {error}") from error
            if journal and not any(journal.is_relative_to(stage.folder) for stage in wanted.values()):
                journal = None
            cells.append(
                Cell(
                    arm=name,
                    slug=slug,
                    curve=curve,
                    x=x,
                    seed=seed,
                    stages=wanted,
                    measures=files,
                    ceiling=ceiling,
                    journal=journal,
                )
            )
    _refuse_copies(cells)
    return Plan(config, chain, tuple(cells))


def _refuse_copies(cells: Sequence[Cell]) -> None:
    """An arm that changes nothing would be “the same” as its baseline, beyond all doubt."""
    seen: dict[tuple[object, ...], str] = {}
    for cell in cells:
        folders = frozenset(stage.folder for stage in cell.stages.values())
        made_by = (cell.seed, *cell.measures.values(), folders)
        if (other := seen.setdefault(made_by, cell.arm)) != cell.arm:
            raise ConfigError(
                f"the arms '{other}' and '{cell.arm}' are the same: what they change does not reach the measures "
                f"{', '.join(cell.measures)}; correct or remove one"
            )


_Loaded = tuple[Config, dict[str, Any]]
"""a configuration, and itself as JSON"""
_Load = Callable[[Command, Path | None, tuple[str, ...]], _Loaded]


def _load(command: Command, file: Path | None, overrides: tuple[str, ...]) -> _Loaded:
    config = load(SCHEMAS[command], file, overrides)
    return config, config.model_dump(mode="json")


def _stages(
    config: StudyConfig,
    chain: ChainConfig,
    change: Change,
    seed: int,
    load_once: _Load,
    content_once: Callable[[Path], str],
) -> dict[str, Stage]:
    """Return the stages of one cell, by name."""
    unknown = sorted({*change, *config.change} - chain.stages.keys())
    if unknown:
        raise ConfigError(
            f"{config.chain} has no stage {', '.join(unknown)}; it has {', '.join(chain.stages)}"
        )
    stages: dict[str, Stage] = {}
    ours = [path.resolve() for path in (config.store, config.out, Path())]
    # what names a folder holds the names of other folders without the store's path, which may move
    marks = {"seed": str(seed)}
    for name in chain.stages:
        stage = chain.whole(name)
        assert stage.command is not None  # the chain has checked it
        changes = (*config.change.get(name, ()), *change.get(name, ()))
        _, marked = _config(stage, name, changes, marks | {"self": "<self>"}, load_once)
        links_marked = {n: _filled(text, marks, f"stage {name}") for n, text in stage.link.items()}
        named = find_sources([marked, links_marked], ours=ours)
        sources = {path: content_once(path) for path in named}
        identity = fingerprint(
            {
                "command": stage.command,
                "config": marked,
                "link": links_marked,
                "ranks": stage.ranks,
                # under the same name another template may lie tomorrow
                "files": {str(path): content for path, content in sources.items()},
            }
        )
        # absolute: some commands take a path relative to another
        folder = config.store.absolute() / f"{stage.command}-{identity}"
        marks[name] = f"<{folder.name}>"
        places = {n: str(other.folder) for n, other in stages.items()}
        places |= {"seed": str(seed), "self": str(folder)}
        resolved, dumped = _config(stage, name, changes, places, load_once)
        text = json.dumps(dumped)
        if folder.name not in text:
            raise ConfigError(
                f"stage {name} would not write into its folder: give it a setting of {{self}}, such as out={{self}}"
            )
        links = {n: Path(_filled(text, places, f"stage {name}")) for n, text in stage.link.items()}
        text += json.dumps([str(path) for path in links.values()])
        stages[name] = Stage(
            name=name,
            command=stage.command,
            folder=folder,
            config=resolved,
            links=links,
            needs=tuple(s.folder for s in stages.values() if s.folder.name in text),
            ranks=stage.ranks,
            seconds=stage.seconds,
            sources=sources,
        )
    return stages


def _config(
    stage: StageConfig, name: str, changes: tuple[str, ...], names: Mapping[str, str], load_once: _Load
) -> _Loaded:
    assert stage.command is not None
    overrides = tuple(_filled(text, names, f"stage {name}") for text in (*stage.set, *changes))
    try:
        return load_once(stage.command, stage.config, overrides)
    except ConfigError as error:
        raise ConfigError(f"stage {name}: {error}") from error


def _filled(text: str, names: Mapping[str, str], where: str) -> str:
    """Replace {NAME}; other braces are YAML's and stay."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise ConfigError(
                f"{where}: '{text}' names {{{match[1]}}}, and there is no such stage before it; known: "
                f"{', '.join(names)}"
            )
        return names[match[1]]

    return _NAME.sub(value, text)


def _wanted(files: Mapping[str, Path], stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages that `files` come from, and all that these need."""
    by_folder = {stage.folder: stage for stage in stages.values()}
    todo = []
    for what, file in files.items():
        own = [folder for folder in by_folder if file.is_relative_to(folder)]
        if not own:
            raise ConfigError(f"{what}: {file} lies in no stage's folder; begin it with {{STAGE}}/")
        todo += own
    found: set[Path] = set()
    while todo:
        folder = todo.pop()
        if folder not in found:
            found.add(folder)
            todo += by_folder[folder].needs
    return {name: stage for name, stage in stages.items() if stage.folder in found}


def as_json(plan: Plan, command: str) -> dict[str, Any]:
    """Return study.json (see results.py)."""
    config = plan.config
    measures = config.measures or tuple(plan.chain.measures)
    arms = {cell.arm: cell for cell in plan.cells}
    return {
        "name": config.out.name,
        "title": config.title,
        "question": config.question,
        "command": command,
        "baseline": config.baseline,
        "seeds": list(config.seeds),
        "x_label": config.x_label,
        "origin": config.origin,
        "measures": {
            name: plan.chain.measures[name].model_dump(mode="json", include={"kind", "tests"})
            for name in measures
        },
        "arms": [
            {"name": arm, "slug": cell.slug, "curve": cell.curve, "x": cell.x} for arm, cell in arms.items()
        ],
        "claims": [claim.model_dump(mode="json") for claim in config.claims],
        "stages": {
            f"{cell.slug}/seed-{cell.seed}": {name: stage.folder.name for name, stage in cell.stages.items()}
            for cell in plan.cells
        },
    }
