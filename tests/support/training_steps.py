"""Real training steps on random numbers: a model, AdamW, DeepSpeed and all four losses, without a corpus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine
from promptmeup.distributed.memory import Stage
from promptmeup.distributed.scaling import Collective, engine_collectives, loss_collectives
from promptmeup.distributed.world import World
from promptmeup.losses.cost import loss_exchange
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import ModelConfig, build_model
from promptmeup.records import Banks, Batch, SoftLabels
from promptmeup.training.optim import OptimConfig, build_optimizer
from promptmeup.training.step import train_step

BANKS = ((50, 24), (40, 20))
"""(prompts, width) of the entities and of the relations"""
LENGTH, OBJECTS = 16, 2


@dataclass
class Trainer:
    """An engine on this rank, and what the scaling model needs to know of it."""

    engine: Any
    world: World
    dtype: torch.dtype
    groups: list[list[int]]
    """numbers of each parameter of each group of the optimizer"""
    width: int
    size: int
    banks: Banks

    def step(self, rows: int, *, micro_batch: int | None = None) -> Callable[[], dict[str, Tensor]]:
        """Return a step on the same `rows` pairs each time."""
        batch = _batch(rows, size=self.size, first=rows * self.world.rank)
        exchange = WorldExchange(self.world)

        def run() -> dict[str, Tensor]:
            return train_step(
                self.engine,
                batch,
                banks=self.banks,
                losses=LossConfig(),
                dtype=self.dtype,
                exchange=exchange,
                micro_batch=micro_batch,
            )

        return run

    def modelled(self, rows: int, *, stage: Stage, backwards: int = 1) -> list[Collective]:
        """Return the collectives that such a step should make."""
        ranks = self.world.size
        sizes = loss_exchange(
            LossConfig(), columns=rows * ranks, width=self.width, dtype=self.dtype, banks=BANKS
        )
        return [
            *engine_collectives(self.groups, stage=stage, ranks=ranks, dtype=self.dtype, backwards=backwards),
            *loss_collectives(
                gathered=sizes.gathered, summed=sizes.summed, returned=sizes.returned, ranks=ranks
            ),
        ]


def trainer(world: World, model: ModelConfig, *, stage: Stage, precision: str = "fp32", rows: int) -> Trainer:
    torch.manual_seed(0)
    (_, entity_width), (_, relation_width) = BANKS
    built = build_model(model, entity_width=entity_width, relation_width=relation_width).train()
    optimizer = build_optimizer(built, backbones=built.backbone_modules(), config=OptimConfig())
    # before the engine, which at stage 3 leaves nothing in a parameter
    groups = [[p.numel() for p in group["params"]] for group in optimizer.param_groups]
    config = EngineConfig.model_validate({"zero_stage": stage, "precision": precision})
    engine = build_engine(built, optimizer=optimizer, config=config, batch=rows, world=world)
    banks = Banks(*(_unit(*shape) for shape in BANKS))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return Trainer(engine, world, dtype, groups, model.width, model.vision.image_size, banks)


def _unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(shape), dim=-1)


def _batch(rows: int, *, size: int, first: int) -> Batch:
    generator = torch.Generator().manual_seed(first)
    ids = torch.arange(rows) + first
    boxes_M4 = torch.tensor([[0.1, 0.0, 0.7, 0.6], [0.5, 0.25, 1.0, 1.0]])

    def labels(*shape: int) -> SoftLabels:
        probs = torch.tensor([0.5, 0.3]).expand(*shape, 2)
        return SoftLabels(torch.arange(2).expand(*shape, 2), probs, torch.ones(shape, dtype=torch.bool))

    return Batch(
        images_BCSS=torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8),
        tokens_BL=torch.randint(1000, 20000, (rows, LENGTH), generator=generator),
        token_mask_BL=torch.ones(rows, LENGTH, dtype=torch.bool),
        image_ids_B=ids,
        caption_ids_B=ids,
        boxes_BM4=boxes_M4.expand(rows, OBJECTS, 4),
        box_mask_BM=torch.ones(rows, OBJECTS, dtype=torch.bool),
        keys=tuple(map(str, ids.tolist())),
        object_labels=labels(rows, OBJECTS),
        image_labels=labels(rows),
    )
