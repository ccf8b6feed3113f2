"""A training step with stored soft labels against the same step with an online teacher, at the paper's sizes.

BERT-base and ViT-B/16 from random weights, three objects a photo. The online teacher (ViT-B/16, frozen, no gradient)
sees each photo and its three crops in every step, as the paper's release means it; cutting and resizing the crops
counts, reading photos does not on either side.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptmeup.data.transforms import normalise
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.total import LossConfig, captions_to_send, total_loss
from promptmeup.models.alignment import AlignmentModel
from promptmeup.prompts.crops import cut_crops, resize_square
from promptmeup.prompts.labels import soft_labels
from promptmeup.records import Banks, Batch, Features, SoftLabels
from tests.benchmarks import harness
from tests.benchmarks.stepping.subjects import ENTITIES, KEPT, OBJECTS, RELATIONS, Subject

CPU = torch.device("cpu")
STUDENT, TEACHER = Subject("base", "student"), Subject("base", "dual encoder")
ROWS, TOKENS, SIZE, STORED = 8, 40, 224, 288
REPEATS = 5
EXCHANGE = WorldExchange(World(rank=0, size=1, local_rank=0, device=CPU))


def _stored(*shape: int, prompts: int) -> SoftLabels:
    probs, ids = torch.randn(*shape, prompts).mul(3).softmax(-1).topk(KEPT)
    return SoftLabels(ids, probs, torch.ones(shape, dtype=torch.bool))


def _batch() -> Batch:
    ids = torch.arange(ROWS)
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.9], [0.5, 0.2, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0]])
    return Batch(
        images_BCSS=torch.randint(0, 256, (ROWS, 3, SIZE, SIZE), dtype=torch.uint8),
        tokens_BL=torch.randint(1000, 20000, (ROWS, TOKENS)),
        token_mask_BL=torch.ones(ROWS, TOKENS, dtype=torch.bool),
        image_ids_B=ids,
        caption_ids_B=ids,
        boxes_BM4=boxes.expand(ROWS, OBJECTS, 4),
        box_mask_BM=torch.ones(ROWS, OBJECTS, dtype=torch.bool),
        keys=tuple(map(str, range(ROWS))),
        object_labels=_stored(ROWS, OBJECTS, prompts=ENTITIES),
        image_labels=_stored(ROWS, prompts=RELATIONS),
    )


def _step(student: AlignmentModel, optimizer: torch.optim.Optimizer, batch: Batch, banks: Banks) -> None:
    """Forward, losses, backward, update: what the engine does in a world of one."""
    columns = captions_to_send(batch, EXCHANGE)
    images = normalise(batch.images_BCSS, mean=student.vision.mean, std=student.vision.std)
    inputs = (images, batch.tokens_BL, batch.token_mask_BL, batch.boxes_BM4, batch.box_mask_BM)
    features = Features(**student(*inputs, on_text=columns.send_one))
    total_loss(features, columns, batch, banks, LossConfig(), EXCHANGE).local.backward()
    optimizer.step()
    optimizer.zero_grad()


def _online(teacher: AlignmentModel, photos: list[Tensor], batch: Batch, banks: Banks) -> None:
    """What an online teacher does in a step: crops, forward, softmax, top entries."""
    boxes = (batch.boxes_BM4 * STORED).numpy().astype(np.float64)
    with torch.no_grad():
        crops = torch.cat([cut_crops(p, b, size=SIZE) for p, b in zip(photos, boxes, strict=True)])
        whole = torch.stack([resize_square(photo, size=SIZE) for photo in photos])
        pixels = normalise(torch.cat([crops, whole]), mean=teacher.vision.mean, std=teacher.vision.std)
        rows: Any = teacher.encode_images(pixels)
        soft_labels(rows[: len(crops)] @ banks.entities_KD.T, temperature=0.07, num_kept=KEPT)
        soft_labels(rows[len(crops) :] @ banks.relations_KD.T, temperature=0.07, num_kept=KEPT)


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time both kinds of step in turns."""
    torch.manual_seed(0)
    student, teacher = STUDENT.model(CPU), TEACHER.model(CPU).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    batch, banks = _batch(), STUDENT.banks(CPU)
    assert banks is not None
    photos = [torch.randint(0, 256, (3, STORED, STORED), dtype=torch.uint8) for _ in range(ROWS)]

    def stored() -> None:
        _step(student, optimizer, batch, banks)

    def online() -> None:
        _online(teacher, photos, batch, banks)
        _step(student, optimizer, batch, banks)

    seconds = harness.interleave({"stored labels": stored, "online teacher": online}, repeats=REPEATS)
    times = {name: harness.spread(values) for name, values in seconds.items()}
    rows = [
        {"step with": name, "pairs": ROWS, "s": time.median, "p25": time.p25, "p75": time.p75}
        for name, time in times.items()
    ]
    ratios = np.array(seconds["online teacher"]) / np.array(seconds["stored labels"])
    return rows, {"stored_vs_online": float(np.median(ratios))}


if __name__ == "__main__":
    harness.run("labels", measure)
