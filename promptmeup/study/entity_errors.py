"""Errors of the entity detector, made on purpose in the names of a vocabulary (entities.tsv)."""

import random
import sys
from collections.abc import Collection, Sequence
from typing import Literal

from promptmeup.errors import ConfigError
from promptmeup.prompts.vocabulary import read_entities
from promptmeup.study.error_file import ErrorFileConfig, write_error_file

CONSONANTS = "bdfghjklmnprstvwz"
VOWELS = "aeiou"


class EntityErrorsConfig(ErrorFileConfig):
    """Which names are wrong, and how."""

    how: Literal["dropped", "swapped", "nonsense"] = "dropped"
    """never found; found as the wrong words, its first and the last of another name; a made-up word for each of its"""


def make_entity_errors(config: EntityErrorsConfig) -> None:
    """Copy a vocabulary, with errors; counts, kinds and the order stay.

    What a name becomes does not hang on the rate: names get theirs in the order in which a growing rate reaches them.

    Raises:
        ConfigError: the file is no vocabulary, fewer than two names are left, no swapped name would be new, or
            `config.out` cannot be written.
    """
    read_entities(config.source, size=sys.maxsize, min_count=0)  # refuses what is no vocabulary
    text = config.source.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("\t")] for line in text.split("\n") if line.strip()]
    names = [name for name, _, _ in rows]
    generators = {name: random.Random(f"{config.seed}/{name}") for name in names}
    reached_at = {name: rng.random() for name, rng in generators.items()}
    wrong = sorted((name for name in names if reached_at[name] < config.rate), key=reached_at.__getitem__)
    made: dict[str, str] = {}
    if config.how == "dropped":
        rows = [row for row in rows if reached_at[row[0]] >= config.rate]
        if len(rows) < 2:
            raise ConfigError(
                f"{config.source}: rate={config.rate} leaves {len(rows)} of {len(names)} names, but the teacher "
                "needs at least 2 to choose from: lower rate, or take a larger vocabulary"
            )
    else:
        taken = {name.casefold() for name in names}
        for name in wrong:
            if config.how == "swapped":
                made[name] = _swapped(name, names, generators[name], taken)
            else:
                made[name] = _nonsense(name, generators[name], taken)
            taken.add(made[name].casefold())
    write_error_file(config.out, ["\t".join((made.get(name, name), *others)) for name, *others in rows])


def _swapped(name: str, names: Sequence[str], rng: random.Random, taken: Collection[str]) -> str:
    """Return the first word of `name` with the last one of another name, a random one if that is new."""
    start = rng.randrange(len(names))
    for step in range(len(names)):
        other = names[(start + step) % len(names)]
        made = f"{name.split()[0]} {other.split()[-1]}"
        if other != name and made.casefold() not in taken:
            return made
    raise ConfigError(
        f"the first word of '{name}' makes a new name with the last word of no other: "
        "lower rate, take a larger vocabulary, or set how=nonsense"
    )


def _nonsense(name: str, rng: random.Random, taken: Collection[str]) -> str:
    """Return a made-up word for each word of `name`, with capitals where it has them."""
    while True:
        words = [(old, _word(rng)) for old in name.split()]
        made = " ".join(word.capitalize() if old[0].isupper() else word for old, word in words)
        if made.casefold() not in taken:
            return made


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3)))
