"""Any raw corpus by its configuration: the one place that knows which kinds there are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from promptmeup.corpora import newsclippings, tabular
from promptmeup.corpora.newsclippings import NewsClippingsConfig
from promptmeup.corpora.tabular import TabularConfig
from promptmeup.records import Reject, Sample

RawCorpus = Annotated[NewsClippingsConfig | TabularConfig, Field(discriminator="kind")]


def splits(corpus: RawCorpus) -> tuple[str, ...]:
    """Return the names of the splits that there are, sorted."""
    return newsclippings.splits(corpus) if isinstance(corpus, NewsClippingsConfig) else tabular.splits(corpus)


def samples(corpus: RawCorpus, *, split: str, reject: Callable[[Reject], None]) -> Iterator[Sample]:
    """Yield each image of `split` with all its captions; what cannot be used goes to `reject`."""
    if isinstance(corpus, NewsClippingsConfig):
        return newsclippings.samples(corpus, split=split, reject=reject)
    return tabular.samples(corpus, split=split, reject=reject)


def image_root(corpus: RawCorpus) -> Path:
    """Return the folder that the samples' image paths are relative to."""
    if isinstance(corpus, NewsClippingsConfig):
        return newsclippings.image_root(corpus)
    return tabular.image_root(corpus)
