"""A whole world's batch and a small student, cut into ranks as the tests like."""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptmeup.records import Banks, Batch, Features, SoftLabels

WIDTH, OBJECTS, ENTITIES, RELATIONS, KEPT = 5, 3, 7, 6, 3
ROWS = 8


@dataclass(frozen=True)
class Inputs:
    """Rows of the world's batch: raw inputs of the student, ids and labels."""

    images_GX: Tensor
    texts_GX: Tensor
    objects_GMX: Tensor
    fused_GX: Tensor
    object_mask_GM: Tensor
    image_ids_G: Tensor
    caption_ids_G: Tensor
    object_ids_GMT: Tensor
    object_probs_GMT: Tensor
    object_keep_GM: Tensor
    relation_ids_GT: Tensor
    relation_probs_GT: Tensor
    relation_keep_G: Tensor

    def shard(self, rank: int, size: int) -> "Inputs":
        return Inputs(**{f.name: getattr(self, f.name).chunk(size)[rank] for f in fields(self)})

    def batch(self) -> Batch:
        rows = len(self.images_GX)
        return Batch(
            images_BCSS=torch.zeros(rows, 3, 1, 1),
            tokens_BL=torch.zeros(rows, 1, dtype=torch.int64),
            token_mask_BL=torch.ones(rows, 1, dtype=torch.bool),
            image_ids_B=self.image_ids_G,
            caption_ids_B=self.caption_ids_G,
            boxes_BM4=torch.zeros(rows, OBJECTS, 4),
            box_mask_BM=self.object_mask_GM,
            keys=("",) * rows,
            object_labels=SoftLabels(self.object_ids_GMT, self.object_probs_GMT, self.object_keep_GM),
            image_labels=SoftLabels(self.relation_ids_GT, self.relation_probs_GT, self.relation_keep_G),
        )


def _labels(generator: torch.Generator, shape: tuple[int, ...], num_prompts: int) -> tuple[Tensor, Tensor]:
    scores = torch.randn(*shape, num_prompts, generator=generator, dtype=torch.float64)
    probs, ids = (2 * scores).softmax(-1).topk(KEPT)
    return ids, probs


def random_inputs(seed: int = 0) -> Inputs:
    """Eight matched pairs of eight photos; every second object is there and labelled."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    object_ids, object_probs = _labels(generator, (ROWS, OBJECTS), ENTITIES)
    relation_ids, relation_probs = _labels(generator, (ROWS,), RELATIONS)
    mask = torch.rand(ROWS, OBJECTS, generator=generator) < 0.7
    return Inputs(
        images_GX=normal(ROWS, WIDTH),
        texts_GX=normal(ROWS, WIDTH),
        objects_GMX=normal(ROWS, OBJECTS, WIDTH),
        fused_GX=normal(ROWS, WIDTH),
        object_mask_GM=mask,
        # 64-bit keys that no float holds exactly: ids must never travel as floats
        image_ids_G=torch.arange(ROWS) - 2**62,
        caption_ids_G=torch.arange(ROWS) - 2**62,
        object_ids_GMT=object_ids,
        object_probs_GMT=object_probs,
        object_keep_GM=torch.rand(ROWS, OBJECTS, generator=generator) < 0.7,
        relation_ids_GT=relation_ids,
        relation_probs_GT=relation_probs,
        relation_keep_G=torch.rand(ROWS, generator=generator) < 0.7,
    )


def _ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers) - 2**62


def scenarios() -> dict[str, Inputs]:
    """Return the batches that once broke somebody's loss, by name."""
    plain = random_inputs()
    nothing = torch.zeros_like(plain.object_keep_GM)
    first_half = torch.arange(ROWS) < ROWS // 2
    return {
        "plain": plain,
        # 3 valid images and 5 valid captions: the directions' counts differ, and by rank
        "falsified": replace(
            plain, image_ids_G=_ids(0, 1, 2, 3, 4, 5, 6, 7), caption_ids_G=_ids(0, 0, 3, 11, 0, 5, 13, 12)
        ),
        "captions_of_one_photo": replace(
            plain, image_ids_G=_ids(0, 0, 0, 1, 2, 0, 1, 3), caption_ids_G=_ids(0, 0, 0, 1, 2, 0, 1, 3)
        ),
        # the same pair on two ranks, and a photo whose caption is falsified here and true there
        "duplicates": replace(
            plain, image_ids_G=_ids(0, 1, 2, 0, 4, 5, 1, 0), caption_ids_G=_ids(0, 5, 2, 0, 4, 5, 1, 9)
        ),
        "empty_ranks": replace(
            plain,
            caption_ids_G=torch.where(first_half, plain.caption_ids_G + 100, plain.caption_ids_G),
            object_mask_GM=plain.object_mask_GM & ~first_half[:, None],
            relation_keep_G=plain.relation_keep_G & ~first_half,
        ),
        "nothing": replace(
            plain,
            caption_ids_G=plain.caption_ids_G + 100,
            object_keep_GM=nothing,
            relation_keep_G=nothing[:, 0],
        ),
    }


class Student(nn.Module):
    """One matrix for each kind of feature and the learnable temperatures, in float64."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)

        def matrix(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64))

        self.image, self.text, self.object, self.relation = (matrix(WIDTH) for _ in range(4))
        self.match = matrix(2)
        self.temperatures = nn.ParameterList(
            nn.Parameter(torch.tensor([temperature * factor], dtype=torch.float64)) for factor in (1, 2, 3)
        )

    def forward(self, inputs: Inputs) -> Features:
        return Features(
            image_BD=F.normalize(inputs.images_GX @ self.image, dim=-1),
            text_BD=F.normalize(inputs.texts_GX @ self.text, dim=-1),
            temperature=self.temperatures[0],
            object_BMD=F.normalize(inputs.objects_GMX @ self.object, dim=-1),
            object_mask_BM=inputs.object_mask_GM,
            relation_BD=F.normalize(inputs.fused_GX @ self.relation, dim=-1),
            object_temperature=self.temperatures[1],
            relation_temperature=self.temperatures[2],
            matching_logits_B2=inputs.fused_GX @ self.match.T,
        )


class ClassifyingStudent(Student):
    """The same with the paper's heads: logits of objects and images, and one temperature."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__(temperature)
        generator = torch.Generator().manual_seed(8)
        self.object, self.relation = (
            nn.Parameter(torch.randn(WIDTH, num_prompts, generator=generator, dtype=torch.float64))
            for num_prompts in (ENTITIES, RELATIONS)
        )
        self.temperatures = self.temperatures[:1]

    def forward(self, inputs: Inputs) -> Features:
        return Features(
            image_BD=F.normalize(inputs.images_GX @ self.image, dim=-1),
            text_BD=F.normalize(inputs.texts_GX @ self.text, dim=-1),
            temperature=self.temperatures[0],
            object_mask_BM=inputs.object_mask_GM,
            matching_logits_B2=inputs.fused_GX @ self.match.T,
            object_logits_BMK=inputs.objects_GMX @ self.object,
            relation_logits_BK=inputs.fused_GX @ self.relation,
        )


def banks() -> Banks:
    generator = torch.Generator().manual_seed(3)
    entities = torch.randn(ENTITIES, WIDTH, generator=generator, dtype=torch.float64)
    relations = torch.randn(RELATIONS, WIDTH, generator=generator, dtype=torch.float64)
    return Banks(F.normalize(entities, dim=-1), F.normalize(relations, dim=-1))
