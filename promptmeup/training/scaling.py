"""How a run would scale over GPUs that are not at hand: a model of its step, in words and numbers. Nothing is trained.

Operations are those of the model on the meta device, bytes those that real steps send (`distributed.scaling`); what the
GPUs and the network do with them is assumed, and said to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptmeup.distributed.memory import STAGES, Stage
from promptmeup.distributed.peaks import peak_tflops
from promptmeup.distributed.scaling import (
    Cluster,
    Collective,
    Scaled,
    StepTime,
    engine_collectives,
    loss_collectives,
    step_time,
)
from promptmeup.errors import ConfigError
from promptmeup.losses.cost import loss_exchange, loss_flops
from promptmeup.models.alignment import PromptShapes, prompt_shapes
from promptmeup.models.cost import RowCost, row_cost
from promptmeup.models.sketch import sketch
from promptmeup.progress import listed
from promptmeup.tracking.console import table
from promptmeup.training.dry_run import EXAMPLE_GPU, gpu_precision, known_labels
from promptmeup.training.optim import parameter_groups
from promptmeup.training.settings import PretrainConfig


@dataclass(frozen=True)
class Assumed:
    """What is not computed and not measured."""

    cluster: Cluster
    flops: float
    """FLOP/s of a GPU at its peak"""
    mfu: float
    """share of the peak that the model reaches, 0 to 1, whatever the batch"""


class ScalingModel:
    """A run's step on any number of GPUs.

    Raises:
        WeightsError: the sizes of an encoder are not known on this machine.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self._shapes: PromptShapes | None = known_labels(config)[0]
        model = sketch(config.model, **prompt_shapes(config.model, self._shapes))
        self.dtype: torch.dtype = gpu_precision(config, model)[0]
        groups = parameter_groups(model, backbones=model.backbone_modules(), config=config.optim)
        self._groups = [[parameter.numel() for parameter in group["params"]] for group in groups]
        self.parameters = sum(map(sum, self._groups))
        self._cost: RowCost = row_cost(model, max_objects=config.data.max_objects)

    @property
    def stage(self) -> Stage:
        return self.config.engine.stage(ranks=2, dtype=self.dtype)

    def _parts(self, rows: int) -> int:
        return -(-rows // min(rows, self.config.micro_batch or rows))

    def collectives(self, ranks: int, rows: int, stage: Stage) -> list[Collective]:
        """Return those of a step of `rows` pairs a rank."""
        sizes = loss_exchange(
            self.config.loss,
            columns=ranks * rows,
            width=self.config.model.width,
            dtype=self.dtype,
            banks=self._shapes,
            classifies=self.config.model.prompt_head == "classifier",
        )
        return [
            *engine_collectives(
                self._groups, stage=stage, ranks=ranks, dtype=self.dtype, backwards=self._parts(rows)
            ),
            *loss_collectives(
                gathered=sizes.gathered, summed=sizes.summed, returned=sizes.returned, ranks=ranks
            ),
        ]

    def passes(self, rows: int, columns: int, assumed: Assumed) -> tuple[float, float]:
        """Return seconds of the forward and of the backward pass, which the losses are counted with."""
        length = self.config.data.max_tokens
        forward = rows * self._cost.forward_flops(length)
        losses = loss_flops(
            self.config.loss,
            rows=rows,
            columns=columns,
            width=self.config.model.width,
            objects=self.config.data.max_objects,
            banks=self._shapes,
            classifies=self.config.model.prompt_head == "classifier",
        )
        backward = rows * self._cost.step_flops(length) - forward + losses
        again = 2 if self._parts(rows) > 1 else 1
        speed = assumed.flops * assumed.mfu
        return again * forward / speed, backward / speed

    def step(self, ranks: int, rows: int, assumed: Assumed) -> StepTime:
        forward, backward = self.passes(rows, ranks * rows, assumed)
        return step_time(
            self.collectives(ranks, rows, self.stage),
            ranks=ranks,
            forward=forward,
            backward=backward,
            link=lambda kind: assumed.cluster.link(kind, ranks),
        )

    def weak(self, gpus: Sequence[int], assumed: Assumed) -> list[Scaled]:
        """Return steps of equal pairs a GPU: as many as the first of `gpus` would have of `global_batch`.

        Raises:
            ConfigError: the batch does not divide over the first number of GPUs.
        """
        rows, rest = divmod(self.config.global_batch, gpus[0])
        if rest or not rows:
            raise ConfigError(
                f"a global batch of {self.config.global_batch} pairs does not divide over {gpus[0]} GPUs; choose "
                f"global_batch={max(1, rows) * gpus[0]}, or another first number of --gpus"
            )
        alone = sum(self.passes(rows, rows, assumed))
        return [Scaled(ranks, rows, self.step(ranks, rows, assumed), alone) for ranks in gpus]

    def strong(self, gpus: Sequence[int], assumed: Assumed) -> list[Scaled]:
        """Return steps of `global_batch`, for the numbers of GPUs over which it divides."""
        batch = self.config.global_batch
        alone = sum(self.passes(batch, batch, assumed))
        return [
            Scaled(ranks, batch // ranks, self.step(ranks, batch // ranks, assumed), alone / ranks)
            for ranks in gpus
            if batch % ranks == 0
        ]


def assumed_peak(config: PretrainConfig, dtype: torch.dtype) -> tuple[float, str]:
    """Return TFLOP/s of a GPU and where they are from."""
    if config.peak_tflops is not None:
        return config.peak_tflops, "peak_tflops of the configuration"
    peak = peak_tflops(EXAMPLE_GPU, dtype)
    assert peak is not None, "the example GPU is in the table"
    return peak, EXAMPLE_GPU


def report(
    model: ScalingModel, weak: Sequence[Scaled], strong: Sequence[Scaled], assumed: Assumed, *, peak_from: str
) -> str:
    """Return the assumptions, the bytes at each ZeRO stage, and both ways of scaling as text."""
    config, cluster, most = model.config, assumed.cluster, weak[-1]
    name = "bf16" if model.dtype is torch.bfloat16 else "fp32"
    lines = [
        ("this is", "a model; nothing was run. Compared with real collectives on CPUs alone, on no GPU"),
        (
            "computed",
            f"operations and bytes of a step: {model.parameters / 1e6:.1f} million parameters in {name}, "
            f"{config.data.max_tokens} tokens a caption, the longest",
        ),
        (
            "assumed",
            f"{assumed.mfu:.0%} of {assumed.flops / 1e12:g} TFLOP/s ({peak_from}) at any batch: a few pairs do not "
            "fill a GPU, so strong scaling is flattered",
        ),
        (
            "assumed",
            f"{cluster.per_node} GPUs a node, {cluster.intra_bandwidth / 1e9:g} GB/s within it, "
            f"{cluster.inter_bandwidth / 1e9:g} GB/s out of it (all cards), {1e6 * cluster.intra_latency:g} and "
            f"{1e6 * cluster.inter_latency:g} µs a hop: a tree's for all-reduce, a ring's for all else",
        ),
        ("left out", "data, evaluation, checkpoints, ranks that are slower than others"),
        (
            "from - to",
            "all exchanges exposed, as DeepSpeed has them at ZeRO 0 to 2 but for the captions; and hidden under both "
            "passes as far as any schedule could",
        ),
        ("efficiency", "pairs/s of a GPU over those of one GPU alone with the same work"),
    ]
    if model.stage == 3 and config.micro_batch is not None:
        lines += [("beware", "ZeRO 3 with micro_batch gathers parameters more often than is counted here")]
    stage = model.stage
    sends = f"MB that each of {most.ranks} GPUs sends in a step of {most.rows} pairs each"
    return "\n".join(
        [
            *listed(lines),
            "",
            f"{sends}; engine.zero_stage is {stage}",
            table([_sent(model, other, most) for other in STAGES]),
            "",
            f"weak scaling: {most.rows} pairs a GPU, ZeRO {stage}",
            table([_row(scaled) for scaled in weak]),
            "",
            f"strong scaling: {config.global_batch} pairs in all, ZeRO {stage}",
            table([_row(scaled) for scaled in strong]) if strong else "the batch divides over none of them",
        ]
    )


def _sent(model: ScalingModel, stage: Stage, most: Scaled) -> dict[str, object]:
    found = model.collectives(most.ranks, most.rows, stage)
    row: dict[str, object] = {"ZeRO": f"{stage} *" if stage == model.stage else f"{stage}"}
    for what in ("gradients", "parameters", "small parameters", "captions", "captions' gradients"):
        row[what] = sum(one.sent(most.ranks) for one in found if one.what == what) / 1e6
    row["all"] = sum(one.sent(most.ranks) for one in found) / 1e6
    return row | {"calls": sum(one.calls for one in found)}


def _row(scaled: Scaled) -> dict[str, object]:
    time = scaled.time
    bounds = (time.hidden, time.exposed)
    return {
        "GPUs": scaled.ranks,
        "pairs a GPU": scaled.rows,
        "compute ms": 1e3 * time.compute,
        "exchange ms": 1e3 * time.exchange,
        "step ms": "-".join(f"{1e3 * seconds:.4g}" for seconds in bounds),
        "pairs/s": "-".join(f"{scaled.pairs_per_second(seconds):.0f}" for seconds in reversed(bounds)),
        "efficiency": "-".join(f"{scaled.efficiency(seconds):.1%}" for seconds in reversed(bounds)),
    }
