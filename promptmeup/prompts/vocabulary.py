"""Vocabularies and prompt templates: plain text files of any size that a user may edit.

Names are kept whole, whatever the number of their words. A name that occurs twice, whatever its case,
would share its probability between two rows of the bank, so it is refused.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from promptmeup.config import Config, fingerprint
from promptmeup.errors import ConfigError

EntityKind = Literal["entity", "noun"]
MAX_NAMES = 65535  # label files hold positions as unsigned 16-bit numbers


class VocabularyConfig(Config):
    """Which names are asked for, and in which sentences."""

    entities: Path | None = None
    """an entities.tsv; None takes the one packed with the first labelled split (the training split)"""
    size: int = Field(default=1000, ge=2, le=MAX_NAMES)
    """at most so many entities, the most frequent ones"""
    min_count: int = Field(default=2, ge=1)
    kinds: tuple[EntityKind, ...] = Field(default=("entity", "noun"), min_length=1)
    stop_list: Path | None = Path("configs/prompts/stop_names.txt")
    """names never asked for, one a line, such as words for the photo itself; None: every name may be"""
    relations: Path = Path("configs/prompts/relations.tsv")
    entity_templates: Path = Path("configs/prompts/entity_templates.txt")
    relation_templates: Path = Path("configs/prompts/relation_templates.txt")


@dataclass(frozen=True)
class Vocabulary:
    """Entities and relations in the order of the banks' rows, and the templates around them."""

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    entity_templates: tuple[str, ...]
    relation_templates: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits; the order of the names counts, since label files hold positions."""
        return fingerprint(asdict(self))


def _lines(path: Path, *, comments: bool) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of the lines that say something."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not (comments and line.startswith("#")):
            yield number, line.removesuffix("\r")


def _refuse_twice(entries: Iterable[tuple[int, str]], path: Path, what: str) -> None:
    first: dict[str, int] = {}
    for number, name in entries:
        earlier = first.setdefault(name.casefold(), number)
        if earlier != number:
            raise ConfigError(
                f"{path}:{number}: {what} '{name}' is in line {earlier} already: remove one of the two"
            )


def _refuse_few(names: Sequence[str], path: Path, what: str, hint: str) -> None:
    if len(names) < 2:
        raise ConfigError(
            f"{path}: {len(names)} {what} left, but the teacher needs at least 2 to choose from: {hint}"
        )


def read_templates(path: Path) -> tuple[str, ...]:
    """Read one template a line, each with ``{}`` once where the name goes; ``#`` starts a comment line.

    Raises:
        ConfigError: naming the line that has no placeholder or several, or is there twice; or an empty file.
    """
    entries = [(number, line.strip()) for number, line in _lines(path, comments=True)]
    for number, template in entries:
        if template.count("{}") != 1:
            raise ConfigError(
                f"{path}:{number}: '{template}' has {template.count('{}')} placeholders; "
                "write {} exactly once, where the name goes"
            )
    _refuse_twice(entries, path, "template")
    if not entries:
        raise ConfigError(f"{path} holds no template: write one a line, for example 'An image of {{}}.'")
    return tuple(template for _, template in entries)


def read_relations(path: Path) -> tuple[str, ...]:
    """Read the labels of ``P-id<TAB>label[<TAB>note]`` lines in order; ``#`` starts a comment line.

    Raises:
        ConfigError: naming the line that has another form, an empty label, or a P-id or label seen before.
    """
    labels: list[tuple[int, str]] = []
    identifiers: list[tuple[int, str]] = []
    for number, line in _lines(path, comments=True):
        identifier, *rest = (cell.strip() for cell in line.split("\t"))
        if not re.fullmatch(r"P[1-9][0-9]*", identifier) or len(rest) not in (1, 2):
            raise ConfigError(
                f"{path}:{number}: '{line}': write P-id, label and perhaps a note, with tabs between them"
            )
        if not rest[0]:
            raise ConfigError(
                f"{path}:{number}: {identifier} has an empty label: write one or remove the line"
            )
        identifiers.append((number, identifier))
        labels.append((number, rest[0]))
    _refuse_twice(identifiers, path, "property")
    _refuse_twice(labels, path, "relation")
    names = tuple(label for _, label in labels)
    _refuse_few(names, path, "relations", "add some")
    return names


def read_stop_list(path: Path) -> frozenset[str]:
    """Return the names of a stop list, one a line, case-folded; ``#`` starts a comment line.

    Raises:
        ConfigError: it cannot be read, or has a name twice.
    """
    entries = [(number, line.strip()) for number, line in _lines(path, comments=True)]
    _refuse_twice(entries, path, "name")
    return frozenset(name.casefold() for _, name in entries)


def read_entities(
    path: Path,
    *,
    size: int = 1000,
    min_count: int = 2,
    kinds: Sequence[str] = ("entity", "noun"),
    stop_names: Collection[str] = (),
) -> tuple[str, ...]:
    """Return the `size` most frequent names of ``name<TAB>count<TAB>kind`` lines, as packing writes them.

    Fewer names than `size` are no mistake: a small corpus has a small vocabulary. Names of equal count
    keep the file's order.

    Raises:
        ConfigError: naming the line that has another form, an empty name, or a name seen before; or when
            fewer than two names reach `min_count`.
    """
    entries: list[tuple[int, str]] = []
    counted: list[tuple[int, str]] = []
    for number, line in _lines(path, comments=False):  # a name may start with '#'
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 3 or not cells[1].isdecimal() or cells[2] not in ("entity", "noun"):
            raise ConfigError(
                f"{path}:{number}: '{line}': write name, count and kind (entity, noun), tabs between them"
            )
        if not cells[0]:
            raise ConfigError(f"{path}:{number}: empty name: write one or remove the line")
        entries.append((number, cells[0]))
        if int(cells[1]) >= min_count and cells[2] in kinds and cells[0].casefold() not in stop_names:
            counted.append((int(cells[1]), cells[0]))
    _refuse_twice(entries, path, "name")
    counted.sort(key=lambda entry: -entry[0])
    names = tuple(name for _, name in counted[:size])
    _refuse_few(
        names,
        path,
        f"of {len(entries)} names",
        f"lower min_count (now {min_count}), allow more kinds (now {', '.join(kinds)}) or pack more captions",
    )
    return names


def read_vocabulary(config: VocabularyConfig, *, entities: Path) -> Vocabulary:
    """Read the four files; `entities` is the packed file that counts where `config` names none.

    Raises:
        ConfigError: see the functions above.
    """
    return Vocabulary(
        entities=read_entities(
            config.entities or entities,
            size=config.size,
            min_count=config.min_count,
            kinds=config.kinds,
            stop_names=read_stop_list(config.stop_list) if config.stop_list else (),
        ),
        relations=read_relations(config.relations),
        entity_templates=read_templates(config.entity_templates),
        relation_templates=read_templates(config.relation_templates),
    )
