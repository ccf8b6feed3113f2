"""What low precision and ZeRO do to the loss: curves of the same training, from the same weights on the same batches.

What they are held against is a plain loop on the CPU in float32, without DeepSpeed; held against it are bfloat16 and
float32 under ZeRO, on a GPU where there is one, else on the CPU. All losses of `small.yaml`, with a ViT in the place of
its EfficientNet, whose batch normalisation bfloat16 does not go with; without dropout, whose random numbers differ
between devices. The few batches come again and again, so that there is something to learn, at the rate of the encoders
for all parts: at the heads' 1e-3 even float32 under ZeRO, off by rounding, leaves the plain loop by 0.4 %.
"""

import os
from typing import Any

import numpy as np
import torch

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import EngineConfig
from promptmeup.distributed.world import World, join
from promptmeup.losses.total import captions_to_send, total_loss
from promptmeup.models.alignment import AlignmentModel
from promptmeup.training.forward import forward
from promptmeup.training.optim import build_optimizer, rate_scale, set_rates
from tests.benchmarks import harness
from tests.benchmarks.stepping.subjects import Ours, Subject

STEPS, ROWS, BATCHES = int(os.environ.get("STEPS", "100")), 16, 5
TRUTH = "float32, plain loop, cpu"
VIT = (
    "model.text.dropout=0",
    "optim.lr=3e-4",
    "model.vision.kind=transformers",
    "model.vision.architecture=null",
    "model.vision.hidden=384",
    "model.vision.layers=6",
    "model.vision.heads=6",
)
SUBJECT = Subject("small", "student", VIT)


def curve(world: World, *, precision: str, stage: int) -> list[float]:
    """Return the total loss of each step, with the schedule of the configuration."""
    config = SUBJECT.config
    model = SUBJECT.model(world.device)
    optimizer = build_optimizer(model, backbones=[], config=config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    engine = EngineConfig.model_validate({"precision": precision, "zero_stage": stage})
    batches = SUBJECT.batches(ROWS, BATCHES, world.device)
    ours = Ours(SUBJECT, batches, world=world, model=model, engine=engine, optimizer=optimizer)
    found = []
    for step in range(STEPS):
        scale = rate_scale(step, total_steps=STEPS, config=config.optim)
        set_rates(ours.engine.optimizer, peaks=peaks, scale=scale)
        found.append(ours()["loss/total"])
    return [value.item() for value in found]


class _Plain:
    """A model as `forward` wants an engine."""

    def __init__(self, module: AlignmentModel) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def plain_curve() -> list[float]:
    """Return the curve of torch's own loop in float32 on the CPU."""
    world = World(0, 1, 0, torch.device("cpu"))
    config, exchange = SUBJECT.config, WorldExchange(world)
    model = SUBJECT.model(world.device)
    optimizer = build_optimizer(model, backbones=[], config=config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches, banks = SUBJECT.batches(ROWS, BATCHES, world.device), SUBJECT.banks(world.device)
    found = []
    for step in range(STEPS):
        set_rates(optimizer, peaks=peaks, scale=rate_scale(step, total_steps=STEPS, config=config.optim))
        batch = batches[step % BATCHES]
        columns = captions_to_send(batch, exchange)
        features = forward(_Plain(model), batch, dtype=torch.float32, on_text=columns.send_one)
        losses = total_loss(features, columns, batch, banks, SUBJECT.losses, exchange)
        losses.local.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.engine.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        found.append(losses.reported["loss/total"].item())
    return found


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Differences of loss curves."""
    world = join()
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    curves = {TRUTH: plain_curve()}
    for precision, stage in (("fp32", 0), ("fp32", 1), ("bf16", 1), ("bf16", 2), ("bf16", 3)):
        name = f"{precision}, {world.device.type}, ZeRO {stage}"
        curves[name] = curve(world, precision=precision, stage=stage)
    truth = np.array(curves[TRUTH])
    rows = []
    summary = {}
    for name, values in curves.items():
        differences = np.abs(np.array(values) / truth - 1)
        rows.append(
            {
                "curve": name,
                "first": values[0],
                "half way": values[STEPS // 2],
                "last": values[-1],
                "largest difference": differences.max(),
                "mean difference": differences.mean(),
            }
        )
        summary[f"largest difference: {name}"] = float(differences.max())
    return rows, summary


if __name__ == "__main__":
    harness.run("numerics", measure)
