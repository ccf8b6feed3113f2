"""Captions -> named entities and nouns by spaCy, and how often each name occurs in a split."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from pydantic import Field

from promptmeup.config import Config
from promptmeup.errors import WeightsError
from promptmeup.records import Span

ENTITY_LABELS = frozenset(
    ("PERSON", "NORP", "FAC", "ORG", "GPE", "LOC", "PRODUCT", "EVENT", "WORK_OF_ART", "LAW")
)
"""What an image can show; dates, times, numbers, money and languages are left out."""
MAX_CHARACTERS = 10_000
"""of a caption that are analysed; no text encoder reads further, and spaCy's memory grows with it"""

Found = tuple[tuple[Span, ...], tuple[Span, ...]]
"""entities, nouns"""
Names = tuple[tuple[str, str], ...]
"""(name, "entity" or "noun"), each once: what a caption adds to the vocabulary"""


class EntityConfig(Config):
    """Which spaCy pipeline reads the captions."""

    model: str = Field(default="en_core_web_sm", min_length=1)
    """a package name or a folder"""
    batch: int = Field(default=256, ge=1)


class EntityFinder:
    """A loaded spaCy pipeline.

    Raises:
        WeightsError: the model is not installed, or has no entity recogniser or no part-of-speech tags.
    """

    def __init__(self, config: EntityConfig) -> None:
        self._batch = config.batch
        self._nlp = _load(config.model)
        parts = self._nlp.pipe_names
        if "ner" not in parts or not {"tagger", "morphologizer"} & set(parts):
            raise WeightsError(
                f"entities.model: {config.model} cannot name entities and tag parts of speech "
                f"(it has {', '.join(parts) or 'no components'}); use a whole pipeline such as en_core_web_sm"
            )
        meta = self._nlp.meta
        self.description = {
            "model": f"{meta['lang']}_{meta['name']}",
            "version": meta["version"],
            "spacy": metadata.version("spacy"),
        }
        self.name = f"{self.description['model']} {meta['version']}"

    def find(self, texts: Sequence[str]) -> Iterator[Found]:
        """Yield the entities and the common nouns of each text, in its own characters.

        An entity's label is spaCy's (PERSON, GPE, ...), a noun's its lemma in lower case. Nouns inside an
        entity, dates and the like included, are not listed: "two years" shows no year.
        """
        # a photo's captions are shown with others too, often in the same shard
        different = list(dict.fromkeys(texts))
        shortened = (text[:MAX_CHARACTERS] for text in different)
        docs = self._nlp.pipe(shortened, batch_size=self._batch)
        known = {text: (_entities(doc), _nouns(doc)) for text, doc in zip(different, docs, strict=True)}
        yield from (known[text] for text in texts)


def _load(model: str) -> Any:
    import spacy

    # spaCy's own packages are on no index; other people's copies there carry a suffix in their name
    copies = [name for name in sorted(spacy.util.get_installed_models()) if name.startswith(f"{model}_")]
    for name in (model, *copies):
        try:
            return spacy.load(name, exclude=["parser", "senter"])
        except OSError as error:
            reason = error
    raise WeightsError(
        f"entities.model: spaCy finds no model {model} ({str(reason).splitlines()[0]}): "
        f"pip install 'promptmeup[english]', or python -m spacy download {model}"
    )


def _entities(doc: Any) -> tuple[Span, ...]:
    return tuple(
        Span(e.start_char, e.end_char, e.text, e.label_) for e in doc.ents if e.label_ in ENTITY_LABELS
    )


def _nouns(doc: Any) -> tuple[Span, ...]:
    return tuple(
        Span(t.idx, t.idx + len(t.text), t.text, t.lemma_.lower())
        for t in doc
        if t.pos_ == "NOUN" and t.ent_iob_ in ("O", "") and t.is_alpha and len(t.text) > 1
    )


def entity_name(text: str) -> str:
    """Return a named entity as a prompt should say it: no leading "the", no possessive, single spaces."""
    name = re.sub(r"['’]s?$", "", " ".join(text.split())).strip("\"'“”‘’`,;:()[] ")
    return re.sub(r"^the ", "", name, flags=re.IGNORECASE)


def names_in(found: Found) -> Names:
    """Return the names of one caption's entities and nouns, each once, sorted."""
    entities, nouns = found
    names = {(entity_name(span.text), "entity") for span in entities}
    names |= {(span.label, "noun") for span in nouns}
    return tuple(sorted(name for name in names if name[0]))


class VocabularyCounter:
    """Counts in how many captions each name occurs, whatever the number of images a caption is shown with."""

    def __init__(self) -> None:
        self._captions: set[str] = set()
        self._totals: Counter[str] = Counter()  # by case-folded name
        self._spellings: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, caption_id: str, names: Names) -> None:
        """Count one caption; a second time under the same id it is ignored."""
        if caption_id in self._captions:
            return
        self._captions.add(caption_id)
        for name, kind in names:
            self._spellings.setdefault(name.casefold(), Counter())[name, kind] += 1
        self._totals.update({name.casefold() for name, _ in names})

    def tsv(self) -> str:
        """Return lines ``name<TAB>count<TAB>kind``, the most frequent first, equal counts by name.

        Names that differ in case alone, or are both entity and noun, would share their probability between
        two prompts. They are one line, with the most frequent spelling and kind.
        """
        rows = []
        for folded, spellings in self._spellings.items():
            name, kind = min(spellings, key=lambda spelling: (-spellings[spelling], spelling))
            rows.append((name, self._totals[folded], kind))
        rows.sort(key=lambda row: (-row[1], row[0]))
        return "".join(f"{name}\t{count}\t{kind}\n" for name, count, kind in rows)
