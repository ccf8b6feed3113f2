"""The page: splits, charts and cards through one template, with everything embedded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from promptmeup.data.reader import LabelReader, PackedSplit
from promptmeup.errors import ShardError
from promptmeup.gallery.cards import Card, choose_samples, make_card
from promptmeup.gallery.statistics import Chart, charts
from promptmeup.shard_format import KEY_PATTERN, Manifest, finished_labels, key_id, write_atomically


@dataclass(frozen=True)
class Section:
    """One split on the page."""

    folder: str
    manifest: Manifest
    labels: str
    """name of the soft labels that are shown, or nothing"""
    charts: Sequence[Chart]
    cards: Sequence[Card]


def write_gallery(
    folders: Sequence[Path], out: Path, *, samples: int, seed: int = 0, keys: Sequence[str] = ()
) -> None:
    """Write the page of the packed splits `folders` to `out`: one file without anything beside it.

    Args:
        samples: shown of each split, chosen at random by `seed`.
        keys: show these samples instead.

    Raises:
        ShardError: a split is not finished or damaged, or no split has one of `keys`.
    """
    sections = [_section(folder, samples=samples, seed=seed, keys=keys) for folder in folders]
    shown = {card.key for section in sections for card in section.cards}
    if missing := [key for key in keys if key not in shown]:
        raise ShardError(f"no sample has the key {', '.join(missing)}; keys are 16 hexadecimal digits")
    environment = Environment(
        loader=PackageLoader("promptmeup.gallery", "."),
        autoescape=True,  # captions come from anywhere
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(sections=sections)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())


def _section(folder: Path, *, samples: int, seed: int, keys: Sequence[str]) -> Section:
    split = PackedSplit(folder)
    labels = newest_labels(split)
    if keys:
        ids = {key_id(key) for key in keys if KEY_PATTERN.fullmatch(key)}
        rows = [row for row, number in enumerate(split.index["image_id"].tolist()) if number in ids]
    else:
        rows = choose_samples(split, number=samples, seed=seed)
    return Section(
        str(folder),
        split.manifest,
        labels.folder.name if labels else "",
        charts(split, seed=seed),
        [make_card(split, row, labels) for row in rows],
    )


def newest_labels(split: PackedSplit) -> LabelReader | None:
    """Return the newest finished soft labels of the split as it is, if there are any."""
    found = finished_labels(split.folder, corpus=split.manifest.fingerprint)
    if not found:
        return None
    return LabelReader(max(found, key=lambda folder: (folder / "manifest.json").stat().st_mtime_ns), split)
