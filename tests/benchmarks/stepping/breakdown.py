"""Where the time of a step goes: torch.profiler's events, each given to the part of the step that it works for.

The parts' forward passes are marked. An operation of the backward pass has the sequence number of the forward operation
that it belongs to, which torch's autograd keeps; so vision's backward pass counts as vision. On a GPU the times are
those of kernels, on a CPU those of operations, their children apart, so that the parts add up to the whole.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from promptmeup.models.alignment import AlignmentModel
from promptmeup.training import step as step_module

PARTS = ("vision", "text", "fusion", "heads", "loss", "optimizer", "communication", "gradients", "other")
"""gradients: where DeepSpeed takes them from autograd and gathers them; other: what belongs to none"""
_MARK = "part: "


def breakdown(
    step: Callable[[], object], model: AlignmentModel, *, steps: int, trace: Path | None = None
) -> dict[str, float]:
    """Return seconds of a step by part, the mean of `steps`; `trace`: where to save the events.

    Profiling takes time itself, on a CPU mostly where operations are small: compare shares.
    """
    cuda = next(model.parameters()).is_cuda
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with _marked(model), profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    found = _by_part(profiler.events(), "self_device_time_total" if cuda else "self_cpu_time_total")
    return {part: found.get(part, 0.0) / 1e6 / steps for part in PARTS}


@contextmanager
def _marked(model: AlignmentModel) -> Iterator[None]:
    """Mark the parts' forward passes, the losses and the update, as they are called."""
    children = {
        "vision": [model.vision],
        "text": [model.text],
        "fusion": [model.fusion] if model.fusion else [],
    }
    children["heads"] = [head for head in model.heads.children() if not isinstance(head, nn.Identity)]
    handles = []
    for part, modules in children.items():
        for module in modules:
            open_marks: list[Any] = []

            def enter(*_: Any, part: str = part, marks: list[Any] = open_marks) -> None:
                marks.append(record_function(_MARK + part))
                marks[-1].__enter__()

            def leave(*_: Any, marks: list[Any] = open_marks) -> None:
                marks.pop().__exit__(None, None, None)

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    total_loss = step_module.total_loss

    def marked_loss(*arguments: Any) -> Any:
        with record_function(_MARK + "loss"):
            return total_loss(*arguments)

    try:
        with mock.patch.object(step_module, "total_loss", marked_loss), _marked_update():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked_update() -> Iterator[None]:
    import deepspeed

    def marked(name: str, part: str) -> Any:
        method = getattr(deepspeed.DeepSpeedEngine, name)

        def run(engine: Any, *arguments: Any, **named: Any) -> Any:
            with record_function(_MARK + part):
                return method(engine, *arguments, **named)

        return mock.patch.object(deepspeed.DeepSpeedEngine, name, run)

    # of the backward pass itself, what belongs to no operation of the forward pass is DeepSpeed's work on gradients
    with marked("step", "optimizer"), marked("backward", "gradients"):
        yield


def _by_part(events: Any, time: str) -> dict[str, float]:
    """Return microseconds by part."""
    owner: dict[int, str] = {}
    threads = set()
    for event in events:
        part = _marked_part(event)
        if part is not None:
            threads.add(event.thread)
            if event.sequence_nr >= 0 and part != "gradients":
                owner.setdefault(event.sequence_nr, part)
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if not event.is_async and not event.name.startswith(_MARK):
            # on a GPU autograd has a thread of its own, where no mark is
            unknown = "other" if event.thread in threads else "gradients"
            found[_part(event, owner, unknown)] += getattr(event, time)
    return found


def _part(event: Any, owner: dict[int, str], unknown: str) -> str:
    """Return what `event` works for: an exchange, a marked part, or the part whose backward pass it is in."""
    chain = list(_ancestors(event))
    if any(name.name.startswith(("c10d::", "gloo:", "nccl:")) for name in chain):
        return "communication"
    for ancestor in chain:
        if ancestor.name.startswith(_MARK):
            return str(ancestor.name).removeprefix(_MARK)
        if ancestor.name.startswith("autograd::engine") and ancestor.sequence_nr in owner:
            return owner[ancestor.sequence_nr]
    return unknown


def _marked_part(event: Any) -> str | None:
    names = (ancestor.name for ancestor in _ancestors(event))
    return next((name.removeprefix(_MARK) for name in names if name.startswith(_MARK)), None)


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent
