"""What the two recipes for fine-tuning share: transformers' Trainer, quiet, with our groups of parameters.

Everything that a benchmark does not set is the Trainer's default: gradients clipped at norm 1, betas 0.9 and 0.999,
rows drawn at random and padded to the longest of a batch, no gathering of equal lengths, no dropout but the encoder's.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


def optimizer(
    model: nn.Module, encoder: nn.Module, *, lr: float, head_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW: `lr` for what is in `encoder` and `head_lr` for the rest, `weight_decay` on matrices only.

    Biases and the weights of LayerNorm are vectors, and so are a CRF's scores of the first and the last label.
    It is fused, as the Trainer's own would be.
    """
    inside = {id(parameter) for parameter in encoder.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((id(parameter) in inside, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": lr if is_encoder else head_lr,
                "weight_decay": weight_decay if is_matrix else 0.0,
            }
            for (is_encoder, is_matrix), parameters in groups.items()
        ],
        fused=True,
    )


def arguments(
    folder: Path, *, epochs: int, batch: int, warmup: float, seed: int, **more: Any
) -> TrainingArguments:
    """Return arguments for epochs with an evaluation after each; the rate falls linearly to 0 after `warmup`.

    Args:
        folder: for whatever is written.
        warmup: share of the steps, in [0, 1).
    """
    assert 0 <= warmup < 1, warmup  # from 1 on, transformers takes it for a number of steps
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        warmup_steps=warmup,
        eval_strategy="epoch",
        logging_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        **more,
    )


class EpochClock(TrainerCallback):
    """Measures the seconds of each epoch's training, without its evaluation and saving."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def train(trainer: Trainer) -> list[float]:
    """Train without a word and return the seconds of each epoch."""
    clock = EpochClock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds
