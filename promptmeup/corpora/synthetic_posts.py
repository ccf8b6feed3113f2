"""Posts about the synthetic world: sentences of which only the image decides what they leave open.

Posts come in twins: the same words twice in the same split, with an image for each of the two readings. So
whatever is decided by words alone is right for exactly half of what is left open, in every split, for
every template and name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from promptmeup.corpora.synthetic_world import Entity, Facts

Span = tuple[int, int]
"""[start, end) in words"""


@dataclass(frozen=True)
class Post(ABC):
    """A sentence and what its image shows."""

    words: tuple[str, ...]
    facts: Facts

    @property
    @abstractmethod
    def asked(self) -> tuple[Entity, ...]:
        """Whom the words leave open: what they mean depends on which of these the image shows."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return what its line says besides id, words, image and boxes."""


def fill(template: str, slots: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Span]]:
    """Return the words of `template`, which are separated by spaces, and where each of its {slots} is."""
    words: list[str] = []
    spans = {}
    for word in template.split():
        name = word[1:-1] if word.startswith("{") else None
        start = len(words)
        words += [word] if name is None else slots[name].split()
        if name is not None:
            spans[name] = (start, len(words))
    return tuple(words), spans


def slot_names(template: str) -> set[str]:
    return {word[1:-1] for word in template.split() if word.startswith("{")}
