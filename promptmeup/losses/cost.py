"""What the losses of a step cost: floating-point operations (of matrix products, as everywhere), memory, exchanges."""

from dataclasses import dataclass

import torch

from promptmeup.losses.total import LossConfig
from promptmeup.records import Banks

TILE = 2048 * 4096
"""numbers in a tile of logits on a GPU, see `tiles_triton`; smaller on a CPU"""


def loss_flops(
    config: LossConfig,
    *,
    rows: int,
    columns: int,
    width: int,
    objects: int = 0,
    banks: tuple[tuple[int, int], tuple[int, int]] | None = None,
    classifies: bool = False,
) -> float:
    """Return those of one rank's forward and backward pass, all rows counting.

    A symmetric contrast is a product for the logits, again in the backward pass, and one for each side's gradient,
    where the side has one: prompts have none. With classifiers the products are the model's own.

    Args:
        rows: B; `columns`: G, of the world; `width`: D of the image-text space; `objects`: M, of each image.
        banks: (prompts, width) of the entities and of the relations; None without soft labels.
    """
    weights = config.weights
    columns = _seen(config, rows=rows, columns=columns)
    found = 8.0 * rows * columns * width if weights.image_text > 0 else 0.0
    if banks is not None and not classifies:
        sides = ((weights.object_entity, rows * objects), (weights.image_relation, rows))
        for (weight, count), (prompts, prompt_width) in zip(sides, banks, strict=True):
            found += 6.0 * count * prompts * prompt_width if weight > 0 else 0.0
    return found


def bank_shapes(banks: Banks | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return (prompts, width) of both banks."""
    if banks is None:
        return None
    (entities, entity_width), (relations, relation_width) = banks.entities_KD.shape, banks.relations_KD.shape
    return (entities, entity_width), (relations, relation_width)


def loss_memory(config: LossConfig, *, rows: int, columns: int, width: int, dtype: torch.dtype) -> int:
    """Return bytes that the contrasts take on one rank: the captions of all, their gradients, two tiles; no logits."""
    if config.weights.image_text == 0:
        return 0
    columns = _seen(config, rows=rows, columns=columns)
    sent = columns * (width * dtype.itemsize + 16)
    return sent + 4 * width * (columns + 2 * rows) + 2 * 4 * TILE


def _seen(config: LossConfig, *, rows: int, columns: int) -> int:
    """Return how many captions a rank's images are compared with."""
    return rows if config.negatives == "rank" else columns


@dataclass(frozen=True)
class LossExchange:
    """Bytes of the three exchanges of a step: all that is gathered, summed or returned, of all ranks."""

    gathered: int
    summed: int
    returned: int


def loss_exchange(
    config: LossConfig,
    *,
    columns: int,
    width: int,
    dtype: torch.dtype,
    banks: tuple[tuple[int, int], tuple[int, int]] | None = None,
    classifies: bool = False,
) -> LossExchange:
    """Return what the losses exchange: captions, statistics of columns with all else that is summed, gradients.

    A caption is its vector in `dtype` and two ids; its gradient is float32. A column's statistics are two float64
    (`contrast.to_sums`), a prompt's three, its mass too; each contrast adds three numbers, and each loss or metric
    that is no contrast a sum and a count. Where ranks see their own rows alone, a loss is one number.

    Args:
        columns: G; `width`: D of the image-text space.
        dtype: of the vectors on the way.
        banks: as in `loss_flops`.
    """
    weights, alone = config.weights, config.negatives == "rank"
    summed, watched, gathered, returned = 0, 1, 0, 0  # watched: rows that are not finite
    if weights.image_text > 0:
        summed += 3  # of the loss and its accuracy
        if not alone:
            summed += 2 * columns
            gathered, returned = columns * (width * dtype.itemsize + 16), columns * width * 4
    if banks is not None:
        for weight, (prompts, _) in zip((weights.object_entity, weights.image_relation), banks, strict=True):
            if weight > 0:
                watched += 3  # entropy, share kept, share of the top prompt
                summed += 1 if alone else 2 if classifies else 3 * prompts + 3
    if weights.matching > 0:
        watched += 1  # its accuracy
        summed += 1 if alone else 2
    return LossExchange(gathered, 8 * (summed + 2 * watched), returned)
