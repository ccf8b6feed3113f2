"""The loop's four ifs: what is logged, evaluated and saved when, and how it stops."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from promptmeup.errors import CheckpointError, TrainingError
from promptmeup.records import Batch, RunState
from promptmeup.training.loop import Every, fit
from promptmeup.training.pretrain import step_seed
from promptmeup.training.signals import Order


def batches() -> Iterator[Batch]:
    zeros = torch.zeros(2, dtype=torch.int64)
    while True:
        yield Batch(
            images_BCSS=torch.zeros(2, 3, 4, 4),
            tokens_BL=zeros[:, None],
            token_mask_BL=zeros[:, None] == 0,
            image_ids_B=zeros,
            caption_ids_B=zeros,
            boxes_BM4=torch.zeros(2, 1, 4),
            box_mask_BM=torch.zeros(2, 1, dtype=torch.bool),
            keys=("aa", "bb"),
        )


class Recorder:
    def __init__(self, stop_at: int = 10**9, nan_at: int = 10**9, full: bool = False) -> None:
        self.steps: list[int] = []
        self.events: list[tuple[str, int]] = []
        self.notes: list[tuple[str, int]] = []
        self.state = RunState()
        self.stop_at, self.nan_at, self.full = stop_at, nan_at, full
        self.told: dict[int, Order] = {}

    def step(self, batch: Batch, number: int) -> dict[str, Tensor]:
        self.steps.append(number)
        return {"loss/total": torch.tensor(float("nan") if number + 1 >= self.nan_at else 1.0)}

    def evaluate(self) -> bool:
        self.events.append(("evaluate", self.state.step))
        return False

    def save(self) -> str | None:
        self.events.append(("save", self.state.step))
        return "no space left" if self.full else None

    def orders(self) -> Order:
        step = self.state.step
        return self.told.get(step, Order.STOP if step >= self.stop_at else Order.GO)

    def fit(self, total: int, every: Every) -> Order:
        return fit(
            self.step,
            batches(),
            state=self.state,
            total_steps=total,
            global_batch=2,
            every=every,
            log=lambda step, values, seconds: self.events.append(("log", step)),
            evaluate=self.evaluate,
            save=self.save,
            orders=self.orders,
            note=lambda phase, step, keys=(): self.notes.append((phase, step)),
        )


def test_periods_and_end() -> None:
    run = Recorder()
    assert run.fit(7, Every(log=3, evaluate=4, save=5)) is Order.GO
    assert run.steps == list(range(7))
    assert run.state.step == 7 and run.state.pairs_consumed == 14
    assert run.events == [
        ("log", 1),
        ("log", 3),
        ("evaluate", 4),
        ("log", 5),
        ("save", 5),
        ("log", 6),
        ("log", 7),
        ("evaluate", 7),
        ("save", 7),
    ]


def test_a_period_of_saving_comes_on_top_of_evaluations() -> None:
    """As in fine-tuning, where a checkpoint follows each epoch."""
    run = Recorder()
    assert run.fit(8, Every(log=100, evaluate=4, save=3, save_evaluated=True)) is Order.GO
    assert [event for event in run.events if event[0] != "log"] == [
        ("save", 3),
        ("evaluate", 4),
        ("save", 4),
        ("save", 6),
        ("evaluate", 8),
        ("save", 8),
    ]


def test_stop_saves_at_once_and_resumes() -> None:
    run = Recorder(stop_at=3)
    assert run.fit(7, Every(log=100, evaluate=3, save=0)) is Order.STOP
    assert run.events == [("log", 1), ("log", 3), ("save", 3)]
    run.stop_at = 10**9
    assert run.fit(7, Every(log=100, evaluate=0, save=0)) is Order.GO
    assert run.steps == list(range(7))
    assert run.fit(7, Every(log=100, evaluate=0, save=0)) is Order.GO, "a finished run is finished"
    assert run.steps == list(range(7))


def test_a_signal_on_the_last_step_still_finishes() -> None:
    run = Recorder(stop_at=7)
    assert run.fit(7, Every(log=100, evaluate=0, save=0)) is Order.GO
    assert run.events[-2:] == [("evaluate", 7), ("save", 7)]


def test_not_a_number_stops_before_it_is_saved() -> None:
    run = Recorder(nan_at=5)
    with pytest.raises(TrainingError, match=r"step 5: loss/total = nan; this rank's rows: aa bb"):
        run.fit(7, Every(log=100, evaluate=0, save=5))
    assert ("save", 5) not in run.events


def test_step_seeds_differ() -> None:
    seeds = {step_seed(s, step=n, rank=r) for s in range(3) for n in range(10) for r in range(4)}
    assert len(seeds) == 3 * 10 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, step=2, rank=3) == step_seed(1, step=2, rank=3)


def test_an_evaluation_may_be_the_last() -> None:
    class Contented(Recorder):
        def evaluate(self) -> bool:
            return super().evaluate() or self.state.step >= 4

    run = Contented()
    assert run.fit(9, Every(log=100, evaluate=2, save=0)) is Order.GO, "that is a finished run"
    assert run.events == [("log", 1), ("evaluate", 2), ("evaluate", 4), ("save", 4)]
    assert run.steps == [0, 1, 2, 3]


def test_told_to_save_now_it_goes_on() -> None:
    run = Recorder()
    run.told = {3: Order.SAVE}
    assert run.fit(5, Every(log=100, evaluate=0, save=0)) is Order.GO
    assert [event for event in run.events if event[0] == "save"] == [("save", 3), ("save", 5)]


def test_a_file_ends_it() -> None:
    run = Recorder()
    run.told = {3: Order.END}
    assert run.fit(5, Every(log=100, evaluate=0, save=0)) is Order.END
    assert run.steps == [0, 1, 2]


def test_a_checkpoint_that_fails_costs_the_checkpoint_and_not_the_run() -> None:
    run = Recorder(full=True)
    assert run.fit(5, Every(log=100, evaluate=0, save=2)) is Order.GO
    assert run.steps == list(range(5))
    run = Recorder(full=True, stop_at=3)
    with pytest.raises(CheckpointError, match=r"told to stop, but no space left; make room"):
        run.fit(5, Every(log=100, evaluate=0, save=0))


def test_what_comes_next_is_noted() -> None:
    run = Recorder()
    run.fit(2, Every(log=100, evaluate=2, save=0))
    assert run.notes == [
        ("reading data", 0),
        ("step", 0),
        ("reading data", 1),
        ("step", 1),
        ("evaluation", 2),
        ("checkpoint", 2),
    ]
