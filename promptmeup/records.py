"""The nouns of the flow, from a raw photo to the terms of the loss.

Shape legend, used as suffixes of names everywhere (``logits_BK``):

    B  pairs (rows) on this rank          G  pairs in the world = B x number of ranks
    C  colour channels                    S  side of the square image, in pixels
    L  text tokens                        P  image tokens (patches)
    H  hidden width of the encoders       D  shared width of the contrastive space
    M  objects per image (padded)         K  prompts in a bank (entities or relations)
    T  entries kept of a soft label (top-k)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # packing starts many processes that need no torch, whose import takes seconds
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Box:
    """One detected object, in pixels of the stored image; x0 < x1 and y0 < y1."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """A named entity or a noun in a caption: characters [start, end), `label` as spaCy names it."""

    start: int
    end: int
    text: str
    label: str


@dataclass(frozen=True)
class Caption:
    """A caption shown with an image. It is a true match iff `image_key` is that image's key."""

    id: str
    text: str
    image_key: str
    """Key of the image of the caption's OWN record (another image's, when the pair is falsified)."""


@dataclass(frozen=True)
class Reject:
    """An input left out, or kept with something missing, and the reason; a line of rejects.jsonl."""

    item: str
    """what it is: an annotation's ids, or an image's path"""
    reason: str
    """snake_case, from a small fixed set: what statistics count by"""
    detail: str
    pairs: int = 1
    """(image, caption) pairs concerned"""
    kept: bool = False
    """true where the pairs are packed all the same, such as an image without detections"""


@dataclass(frozen=True)
class Sample:
    """One photo of a raw corpus with every caption that an annotation shows with it."""

    key: str
    image_path: str
    """normalised, relative to the corpus's folder of images"""
    captions: tuple[Caption, ...]
    boxes: tuple[Box, ...] | None = None
    """in pixels of the original image, EXIF orientation applied; None where the corpus brings none"""
    member: tuple[int, int] | None = None
    """(offset, size) of the image's bytes where `image_path` is an archive that holds many"""
    notes: tuple[Reject, ...] = ()
    """what is worth knowing of its pairs, if they are packed"""

    @property
    def name(self) -> str:
        """What rejects.jsonl and key.json call the photo, and what its key is made of."""
        return photo_name(self.image_path, self.member)


def photo_name(path: str, member: tuple[int, int] | None) -> str:
    """Return the name of a photo: its path, or archive and offset where it lies in one."""
    return path if member is None else f"{path}@{member[0]}"


@dataclass(frozen=True, kw_only=True)
class Post:
    """A sentence and the photo posted with it: what the two downstream tasks have in common."""

    id: str
    words: tuple[str, ...]
    image_name: str | None = None
    """as the corpus names it; None where it names none"""
    image: Path | None = None
    """the file; None where none is named, and where the file is absent: no other takes its place"""
    crops: tuple[Path, ...] = ()
    """pictures of single objects that the corpus brings, in its order; those whose files are there"""
    missing_crops: int = 0
    """crops that the corpus names and whose files are absent"""
    boxes: tuple[Box, ...] | None = None
    """in pixels of the image, EXIF orientation applied; None where the corpus brings none"""


@dataclass(frozen=True, kw_only=True)
class TaggedSentence(Post):
    """A sentence with its named entities."""

    tags: tuple[str, ...]
    """one a word: "O", "B-TYPE" or "I-TYPE" exactly as in the file, an I- that continues nothing too"""


@dataclass(frozen=True)
class WordSpan:
    """Words [start, end) of a sentence."""

    start: int
    end: int
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RelationInstance(Post):
    """A sentence, two spans in it, which may overlap, and how the first is related to the second."""

    head: WordSpan
    tail: WordSpan
    relation: str


@dataclass(frozen=True)
class SoftLabels:
    """Top-T probabilities over K prompts for a set of rows; the rest of the mass is uniform on the others.

    `keep` marks rows that count: a label exists and its largest probability reaches the threshold.
    """

    ids: Tensor
    """[..., T] int64, positions in the prompt bank."""
    probs: Tensor
    """[..., T] float32, descending, sum <= 1."""
    keep: Tensor
    """[...] bool."""


@dataclass(frozen=True)
class Substitute:
    """A pair that took the place of a damaged one."""

    position: int
    """of the slot, in the order of the run"""
    shard: str
    key: str
    offset: int
    """bytes from the start of the shard"""
    reason: str
    by: str
    """key of the photo shown instead"""


@dataclass(frozen=True)
class Batch:
    """What one rank trains on in one step. A pair is a true match iff its two ids are equal."""

    images_BCSS: Tensor
    """uint8: a quarter of the bytes of float32 on every way; `training.forward` normalises them."""
    tokens_BL: Tensor
    """int64 token ids, padded."""
    token_mask_BL: Tensor
    """bool, true on real tokens."""
    image_ids_B: Tensor
    """int64, the image's key as a number."""
    caption_ids_B: Tensor
    """int64, the key of the image that the caption's own record names."""
    boxes_BM4: Tensor
    """float32 x0, y0, x1, y1 in [0, 1] of the (augmented) image; zeros where absent."""
    box_mask_BM: Tensor
    """bool, true where an object is there."""
    keys: tuple[str, ...]
    """Image keys, for messages."""
    object_labels: SoftLabels | None = None
    """over [B, M], or None where no labels are read."""
    image_labels: SoftLabels | None = None
    """over [B], or None where no labels are read."""
    color_B3: Tensor | None = None
    """float32 factors of brightness, contrast and saturation, where they are still to be applied"""
    substitutes: tuple[Substitute, ...] = ()
    """rows whose own data is damaged"""
    lengths: tuple[int, ...] | None = None
    """real tokens of each caption, ascending, known without asking the device; None: not known, or in no order"""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def matched_B(self) -> Tensor:
        """bool, true where caption and image belong together."""
        return self.image_ids_B == self.caption_ids_B

    def to(self, device: torch.device, *, non_blocking: bool = True) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def rows(self, start: int, stop: int) -> Batch:
        """Return the batch of some of the rows."""
        lengths = None if self.lengths is None else self.lengths[start:stop]
        return replace(
            self._map(lambda tensor: tensor[start:stop]), keys=self.keys[start:stop], lengths=lengths
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; a DataLoader with `pin_memory` calls this by its name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Say of every tensor that work on `stream` uses it, before its memory may be given away."""

        def recorded(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(recorded)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        from torch import Tensor

        def changed(value: object) -> object:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, SoftLabels):
                return SoftLabels(**{f.name: change(getattr(value, f.name)) for f in fields(value)})
            return value

        return Batch(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Features:
    """What the student computes from a batch; unit vectors along the last dimension.

    The fused ones are None when the model runs as a dual encoder (the teacher). Temperatures are
    tensors of shape [1], read inside the model's forward so that sharded parameters are whole.
    """

    image_BD: Tensor
    text_BD: Tensor
    temperature: Tensor
    object_BMD: Tensor | None = None
    """in the entity bank's width"""
    object_mask_BM: Tensor | None = None
    """bool; false where there is no object or its box covers less than one patch"""
    relation_BD: Tensor | None = None
    """the image, in the relation bank's width"""
    object_temperature: Tensor | None = None
    relation_temperature: Tensor | None = None
    matching_logits_B2: Tensor | None = None
    object_logits_BMK: Tensor | None = None
    """float32, over the entities; with classifiers, in place of object_BMD and its temperature"""
    relation_logits_BK: Tensor | None = None
    """float32, over the relations; with classifiers, in place of relation_BD and its temperature"""

    def tensors(self) -> dict[str, Tensor]:
        """Return those that are there, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def is_per_row(name: str) -> bool:
    """Whether this field of `Features` has a row for each pair; a temperature is one number for all."""
    return not name.endswith("temperature")


@dataclass(frozen=True)
class Banks:
    """Prompt embeddings of the teacher, unit rows: E and R of the method."""

    entities_KD: Tensor
    relations_KD: Tensor


@dataclass(frozen=True)
class Term:
    """A loss of single rows, or a metric, on this rank: the sum over its valid rows and their number."""

    sum: Tensor
    count: Tensor


@dataclass
class RunState:
    """Where a run is; everything that a resumed run needs besides the engine's own state."""

    step: int = 0
    """optimizer steps done"""
    pairs_consumed: int = 0
    """by all ranks together: the loader's whole position"""
    epoch: int = 0
    """that this position lies in"""
    best: float = -1.0
    """best evaluation score so far"""
    evaluated_at: int = -1
    """step of the last evaluation of a pre-training run; -1 before the first, and of checkpoints that do not say it"""
    stale: int = 0
    """evaluations since that one"""
    skipped: int = 0
    """steps whose loss was not finite, so that they changed nothing"""
    layout: str = ""
    """how the checkpoint's files are cut, by `engine.layout`"""
    order: dict[str, int | str] = field(default_factory=dict)
    """all that the order of the data depends on (`order_version`, `fingerprint` of the corpus, `seed`, ...)"""
