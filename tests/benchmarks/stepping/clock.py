"""How long a run's steps take, and how much of that is not forward, losses, backward or update."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from promptmeup.training import pretrain
from promptmeup.training import step as step_module


class Clock:
    """Times the steps of a `pretrain.train` after `warmup`; on a GPU by events of its stream, not by the host.

    Attributes:
        steps: that were timed.
    """

    def __init__(self, device: torch.device, *, warmup: int) -> None:
        self._cuda, self._warmup = device.type == "cuda", warmup
        self._inside: list[tuple[Any, Any]] = []
        self._began: Any = None
        self._ended: Any = None
        self.steps = 0

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, began: Any, ended: Any) -> float:
        return began.elapsed_time(ended) / 1000 if self._cuda else ended - began

    @property
    def seconds(self) -> float:
        """Of a step, all in all."""
        self._wait()
        return self._seconds(self._began, self._ended) / self.steps

    @property
    def overhead(self) -> float:
        """Share of the time that is none of the four: data, schedule, metrics, logging, orders, copying."""
        self._wait()
        return 1 - sum(self._seconds(*span) for span in self._inside) / self._seconds(
            self._began, self._ended
        )

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = self._now()
            try:
                return function(*arguments, **named)
            finally:
                if self._began is not None and self._ended is None:
                    self._inside.append((began, self._now()))

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the runs inside, which are of `warmup` steps and more."""
        import deepspeed

        fit, engine = pretrain.fit, deepspeed.DeepSpeedEngine

        def timed_fit(step: Any, batches: Any, *, total_steps: int, **named: Any) -> Any:
            def counted(batch: Any, number: int) -> Any:
                if number == self._warmup:
                    self._began = self._now()
                if number == total_steps - 1:  # the last one ends with a checkpoint
                    self._ended, self.steps = self._now(), number - self._warmup
                return step(batch, number)

            return fit(counted, batches, total_steps=total_steps, **named)

        with (
            mock.patch.object(pretrain, "fit", timed_fit),
            mock.patch.object(step_module, "forward", self._timed(step_module.forward)),
            mock.patch.object(step_module, "total_loss", self._timed(step_module.total_loss)),
            mock.patch.object(engine, "backward", self._timed(engine.backward)),
            mock.patch.object(engine, "step", self._timed(engine.step)),
        ):
            yield
