"""The loop: one step after the other; log, evaluate, save and stop are four plain ifs."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from promptmeup.errors import CheckpointError, TrainingError
from promptmeup.records import RunState
from promptmeup.training.signals import Order


class Named(Protocol):
    """A batch, as far as the loop is concerned."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its rows, for messages."""


class Note(Protocol):
    """Is told what comes next: the phase, the steps done, the batch's keys."""

    def __call__(self, phase: str, step: int, keys: Sequence[str] = ()) -> None: ...


SomeBatch = TypeVar("SomeBatch", bound=Named)


@dataclass(frozen=True)
class Every:
    """Steps between two occurrences; 0 means never (the end of training always evaluates and saves)."""

    log: int
    evaluate: int
    save: int
    save_evaluated: bool = False
    """save after each evaluation, too"""


def fit(
    step: Callable[[SomeBatch, int], dict[str, Tensor]],
    batches: Iterator[SomeBatch],
    *,
    state: RunState,
    total_steps: int,
    global_batch: int,
    every: Every,
    log: Callable[[int, dict[str, float], float], None],
    evaluate: Callable[[], bool],
    save: Callable[[], str | None],
    orders: Callable[[], Order],
    note: Note,
) -> Order:
    """Train from `state.step` to `total_steps`; return GO at the end, or the order that ended it before, after saving.

    `step` gets a batch and the number of the update, and returns scalars on the device; they are read only
    where a line is logged, so that a GPU is never waited for in between. `log` gets the step, its values, and
    the seconds since the line before. `evaluate` returns whether training may end here already. `save` returns what
    went wrong, if anything did: training goes on without that checkpoint. `note` is told what comes next.

    Raises:
        TrainingError: a value of a logged step is not finite; nothing is saved, the last checkpoint stays.
        CheckpointError: told to stop, and the checkpoint could not be written.
    """
    data_seconds = 0.0
    logged_step, logged_at = state.step, time.perf_counter()
    if state.step < total_steps and (order := orders()) >= Order.STOP:
        return order  # told while it was starting: there is nothing new to save
    while state.step < total_steps:
        note("reading data", state.step)
        begin = time.perf_counter()
        batch = next(batches)
        data_seconds += time.perf_counter() - begin
        note("step", state.step, batch.keys)
        metrics = step(batch, state.step)
        state.step += 1
        state.pairs_consumed += global_batch
        is_last = state.step == total_steps
        order = orders()
        is_stopping = order >= Order.STOP
        is_due = every.evaluate > 0 and state.step % every.evaluate == 0 and not is_stopping
        is_saving = is_last or order is not Order.GO or (every.save > 0 and state.step % every.save == 0)
        is_saving = is_saving or (is_due and every.save_evaluated)

        if is_saving or state.step % every.log == 0 or state.step == 1:
            values = {name: value.item() for name, value in metrics.items()}
            check_finite(values, batch=batch, step=state.step)
            seconds = time.perf_counter() - logged_at
            values["pairs_per_second"] = (state.step - logged_step) * global_batch / seconds
            values["data_wait"] = data_seconds / seconds
            log(state.step, values, seconds)
            data_seconds, logged_step, logged_at = 0.0, state.step, time.perf_counter()
        if is_last or is_due:
            note("evaluation", state.step)
            is_last = evaluate() or is_last
            is_saving = is_saving or is_last
        if is_saving:
            note("checkpoint", state.step)
            problem = save()
            if is_stopping and problem:
                raise CheckpointError(
                    f"told to stop, but {problem}; make room and start again to resume from there"
                )
        if is_last:
            return Order.GO
        if is_stopping:
            return order
        if is_saving or (every.evaluate > 0 and state.step % every.evaluate == 0):
            # evaluating and saving are not training: keep them out of the next pairs per second
            data_seconds, logged_step, logged_at = 0.0, state.step, time.perf_counter()
    return Order.GO


def check_finite(values: dict[str, float], *, batch: Named, step: int) -> None:
    """Raise where a loss is NaN or infinite, naming the terms and the batch's keys."""
    wrong = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"step {step}: {', '.join(wrong)}; this rank's rows: {' '.join(batch.keys[:8])}"
            f"{' ...' if len(batch.keys) > 8 else ''}. The last checkpoint is untouched; "
            "lower optim.lr, or look at these rows, and start again to resume"
        )
