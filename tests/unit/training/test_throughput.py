"""FLOP/s and MFU from pairs per second; the losses' share counted in the losses themselves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.peaks import peak_tflops
from promptmeup.distributed.world import World
from promptmeup.losses.cost import LossExchange, loss_exchange, loss_flops
from promptmeup.losses.total import LossConfig, LossWeights, captions_to_send, seen_by, total_loss
from promptmeup.models.cost import RowCost, row_cost
from promptmeup.models.sketch import sketch_of
from promptmeup.records import Banks, Batch, Features, SoftLabels
from promptmeup.training.throughput import Throughput, step_flops
from tests.unit.models.support import tiny_model

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
ROWS, OBJECTS, WIDTH = 64, 3, 32
SHAPES = ((50, 24), (40, 20))
"""of the banks"""


def whole_batch(length: int = 8) -> Batch:
    """Every row matches and every label counts."""

    def labels(*rows: int) -> SoftLabels:
        probs = torch.tensor([0.6, 0.4]).expand(*rows, 2)
        return SoftLabels(torch.tensor([0, 1]).expand(*rows, 2), probs, torch.ones(rows, dtype=torch.bool))

    ids = torch.arange(ROWS)
    return Batch(
        images_BCSS=torch.zeros(ROWS, 3, 1, 1, dtype=torch.uint8),
        tokens_BL=torch.zeros(ROWS, length, dtype=torch.int64),
        token_mask_BL=torch.ones(ROWS, length, dtype=torch.bool),
        image_ids_B=ids,
        caption_ids_B=ids,
        boxes_BM4=torch.zeros(ROWS, OBJECTS, 4),
        box_mask_BM=torch.ones(ROWS, OBJECTS, dtype=torch.bool),
        keys=("",) * ROWS,
        object_labels=labels(ROWS, OBJECTS),
        image_labels=labels(ROWS),
    )


def vectors(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).requires_grad_()


class Counting(WorldExchange):
    """A world of one that counts the bytes it is handed."""

    def __init__(self) -> None:
        super().__init__(ALONE)
        self.bytes = {"gathered": 0, "summed": 0, "returned": 0}

    def _counted(self, what: str, values: torch.Tensor) -> torch.Tensor:
        self.bytes[what] += values.numel() * values.element_size()
        return values

    def gather(self, rows: torch.Tensor) -> Any:
        return super().gather(self._counted("gathered", rows))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return super().sum(self._counted("summed", values))

    def scatter_sum(self, rows: torch.Tensor) -> Any:
        return super().scatter_sum(self._counted("returned", rows))


@pytest.mark.parametrize(
    "without", [(), ("image_text",), ("object_entity",), ("image_relation",), ("matching",)]
)
@pytest.mark.parametrize("negatives", ["world", "rank"])
def test_operations_and_exchanges_of_the_losses(negatives: Any, without: tuple[str, ...]) -> None:
    weights = LossWeights.model_validate(dict.fromkeys(without, 0.0))
    config = LossConfig(weights=weights, negatives=negatives)
    (entities, entity_width), (relations, relation_width) = SHAPES
    temperature = torch.tensor([0.1], requires_grad=True)
    features = Features(
        image_BD=vectors(ROWS, WIDTH),
        text_BD=vectors(ROWS, WIDTH),
        temperature=temperature,
        object_BMD=vectors(ROWS, OBJECTS, entity_width),
        object_mask_BM=torch.ones(ROWS, OBJECTS, dtype=torch.bool),
        relation_BD=vectors(ROWS, relation_width),
        object_temperature=temperature,
        relation_temperature=temperature,
        matching_logits_B2=torch.randn(ROWS, 2, requires_grad=True),
    )
    banks = Banks(vectors(entities, entity_width).detach(), vectors(relations, relation_width).detach())
    exchange = Counting()
    # torch's counter does not know the product that adds in place
    in_place: Any = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        columns = captions_to_send(whole_batch(), seen_by(config, exchange))
        if "image_text" not in without:
            features = replace(features, text_BD=columns.send_one(features.text_BD))
        total_loss(features, columns, whole_batch(), banks, config, exchange).local.backward()
    # of captions that other ranks would have, one alone knows nothing
    num_columns = ROWS if negatives == "world" else 3 * ROWS
    found = loss_flops(config, rows=ROWS, columns=num_columns, width=WIDTH, objects=OBJECTS, banks=SHAPES)
    assert found == pytest.approx(counter.get_total_flops(), rel=1e-9)
    sizes = loss_exchange(config, columns=num_columns, width=WIDTH, dtype=torch.float32, banks=SHAPES)
    assert sizes == LossExchange(**exchange.bytes)


@pytest.mark.parametrize("negatives", ["world", "rank"])
def test_exchanges_of_classifiers(negatives: Any) -> None:
    """Their statistics stay on the rank; a loss is a sum and a count."""
    (entities, _), (relations, _) = SHAPES
    features = Features(
        object_mask_BM=torch.ones(ROWS, OBJECTS, dtype=torch.bool),
        object_logits_BMK=torch.randn(ROWS, OBJECTS, entities, requires_grad=True),
        relation_logits_BK=torch.randn(ROWS, relations, requires_grad=True),
        image_BD=vectors(ROWS, WIDTH),
        text_BD=vectors(ROWS, WIDTH),
        temperature=torch.tensor([0.1], requires_grad=True),
        matching_logits_B2=torch.randn(ROWS, 2, requires_grad=True),
    )
    banks = Banks(vectors(entities, 24).detach(), vectors(relations, 20).detach())
    exchange, config = Counting(), LossConfig(negatives=negatives)
    columns = captions_to_send(whole_batch(), seen_by(config, exchange), dtype=torch.bfloat16)
    features = replace(features, text_BD=columns.send_one(features.text_BD))
    total_loss(features, columns, whole_batch(), banks, config, exchange).local.backward()
    sizes = loss_exchange(
        config, columns=ROWS, width=WIDTH, dtype=torch.bfloat16, banks=SHAPES, classifies=True
    )
    assert sizes == LossExchange(**exchange.bytes)


def test_classifiers_multiply_in_the_model() -> None:
    config = LossConfig(weights=LossWeights(image_text=0))
    assert loss_flops(config, rows=8, columns=8, width=4, objects=3, banks=SHAPES, classifies=True) == 0


def test_step_counts_what_micro_batches_do_twice() -> None:
    cost = RowCost(forward=(1.0, 2.0, 3.0), backward=(2.0, 4.0, 6.0))
    forward = 1 + 2 * 10 + 3 * 100
    assert cost.forward_flops(10) == forward
    assert step_flops(cost, rows=4, length=10) == 4 * 3 * forward
    assert step_flops(cost, rows=4, length=10, losses=5.0, micro_batch=2) == 4 * 4 * forward + 5
    assert step_flops(cost, rows=4, length=10, micro_batch=4) == 4 * 3 * forward


def test_rates_follow_the_captions() -> None:
    model = tiny_model()
    settings = {"losses": LossConfig(), "banks": None, "rows": ROWS, "max_objects": OBJECTS}
    meter = Throughput(model, **settings, dtype=torch.float32, world=replace(ALONE, size=2), peak=2.0)
    assert meter.rates(1000.0) == {}
    for length in (8, 24):
        meter.note(whole_batch(length))
    found = meter.rates(1000.0)
    cost = row_cost(sketch_of(model), max_objects=OBJECTS)
    contrast = 8.0 * (2 * ROWS) * model.config.width  # of a row with the captions of both ranks
    expected = 500.0 * ((cost.step_flops(8) + cost.step_flops(24)) / 2 + contrast) / 1e12
    assert found == pytest.approx({"tflops": expected, "mfu": expected / 2})
    meter.note(whole_batch(8))
    assert meter.rates(1000.0)["tflops"] < expected
    # a CPU has no peak in the table
    assert set(_noted(Throughput(model, **settings, dtype=torch.float32, world=ALONE))) == {"tflops"}


def _noted(meter: Throughput) -> dict[str, float]:
    meter.note(whole_batch())
    return meter.rates(10.0)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GH200 480GB", 989, 67),
        ("Tesla V100-SXM2-32GB", None, 15.7),
        ("Tesla T4", None, 8.1),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("AMD Instinct MI300X", None, None),
    ],
)
def test_peaks_by_the_drivers_names(name: str, bf16: float | None, fp32: float | None) -> None:
    assert peak_tflops(name, torch.bfloat16) == bf16
    assert peak_tflops(name, torch.float32) == fp32
