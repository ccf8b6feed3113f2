"""The whole training step: time, FLOP/s, memory, where the time goes, what each lever gives; beside open_clip's own.

Random batches that lie on the device, of the shipped configurations at their sizes; then a real run of the command on
shards, for what reading, logging and the loop add. On a CPU the peak is what the fastest of some large products of
matrices reached in the same run. FLOPs are those of forward and backward pass, captions as long as they were worked
on; "real" counts the captions' own tokens alone.

    SHARDS=packed/train     a packed split with soft labels for the run of the command; without it, drawn photos
    FULL=1                  on a CPU too: `base`, and more sizes of batches
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptmeup.distributed.peaks import peak_tflops
from promptmeup.distributed.world import World, gpu_names, join
from promptmeup.losses.cost import bank_shapes, loss_flops
from promptmeup.models.cost import row_cost
from promptmeup.models.layers import checkpoint_layers, compile_layers, transformer_layers
from promptmeup.records import Batch
from promptmeup.training import pretrain
from promptmeup.training.throughput import batch_flops, worked_on
from tests.benchmarks import harness
from tests.benchmarks.peers.peer import MissingPeerError
from tests.benchmarks.stepping.breakdown import breakdown
from tests.benchmarks.stepping.clock import Clock
from tests.benchmarks.stepping.subjects import OBJECTS, Ours, Scale, Subject, settings
from tests.support.packed import write_packed_split

FULL = bool(os.environ.get("FULL"))
BATCHES, WARMUPS = 2, 1
OPEN_CLIP = "open_clip"
TRACE = Path("benchmarks/step_trace.json")

Lever = Callable[[Ours], AbstractContextManager[None]]


def cases(device: torch.device) -> list[tuple[Subject, int]]:
    """Return (what, rows of a rank); the last one is the headline."""
    if device.type == "cuda":
        sweep = [(Subject("base", "dual encoder"), rows) for rows in (64, 256)]
        return sweep + [(Subject("base", "student"), rows) for rows in (64, 512, 256)]
    sweep = [(Subject("tiny", "dual encoder"), 64), (Subject("tiny", "student"), 64)]
    if FULL:
        sweep += [(Subject("base", kind), 4) for kind in ("dual encoder", "student")]
        sweep += [(Subject("small", "student"), rows) for rows in (8, 16, 64)]
    return [*sweep, (Subject("small", "dual encoder"), 32), (Subject("small", "student"), 32)]


def repeats(device: torch.device) -> tuple[int, int]:
    """Return how often each side is timed, and steps each time: open_clip's reads its loss in each call."""
    return (4, 4) if device.type == "cuda" else (5, BATCHES)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s: of the data sheet on a GPU, else the best of products of 1024 and 2048 here and now."""
    if device.type == "cuda":
        known = peak_tflops(gpu_names()[0], dtype)
        if known is not None:
            return known * 1e12
    best = 0.0
    for side in (1024, 2048):
        a, b = (
            torch.randn(side, side, device=device, dtype=dtype),
            torch.randn(side, side, device=device, dtype=dtype),
        )
        seconds = harness.interleave({"product": synchronised(lambda a=a, b=b: a @ b, device)}, repeats=8)  # type: ignore[misc]
        best = max(best, 2 * side**3 / min(seconds["product"]))
    return best


def synchronised(
    function: Callable[[], object], device: torch.device, *, times: int = 1
) -> Callable[[], object]:
    """Return what runs `function` that many times, until the device has done it."""

    def run() -> None:
        for _ in range(times):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


# ---------------------------------------------------------------------------------------------------- levers


@contextmanager
def regrouped(ours: Ours) -> Iterator[None]:
    """All captions as long as the longest of the batch, or, where they are, in groups of their lengths."""
    batches = ours.batches
    ours.batches = [replace(batch, lengths=None if batch.lengths else lengths_of(batch)) for batch in batches]
    yield
    ours.batches = batches


def lengths_of(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.token_mask_BL.sum(1).tolist())


@contextmanager
def separate_attention(_: Ours) -> Iterator[None]:
    """Attention by products of matrices that keep the probabilities."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def adamw(**implementation: bool) -> Lever:
    @contextmanager
    def chosen(ours: Ours) -> Iterator[None]:
        groups = ours.engine.optimizer.param_groups
        before = [{name: group.get(name) for name in ("fused", "foreach")} for group in groups]
        for group in groups:
            group.update({"fused": False, "foreach": False} | implementation)
        yield
        for group, values in zip(groups, before, strict=True):
            group.update(values)

    return chosen


def checkpointed(kind: Any) -> Lever:
    @contextmanager
    def chosen(ours: Ours) -> Iterator[None]:
        checkpoint_layers(ours.model, kind)
        yield
        for layer in transformer_layers(ours.model):
            vars(layer).pop("forward")

    return chosen


WHOLE, GROUPED = "all captions at the longest's length", "captions in groups of their lengths"


def levers(device: torch.device) -> dict[str, Lever]:
    """Return what is changed of the step as it is shipped, by name."""
    return {
        (GROUPED if device.type == "cuda" else WHOLE): regrouped,
        "attention by separate products": separate_attention,
        "AdamW, a loop": adamw(),
        "AdamW, foreach": adamw(foreach=True),
        "selective checkpointing": checkpointed("selective"),
        "full checkpointing": checkpointed("full"),
    }


def within(lever: Lever, ours: Ours, *, times: int = 1) -> Callable[[], object]:
    def steps() -> None:
        with lever(ours):
            for _ in range(times):
                ours()

    return steps


# ---------------------------------------------------------------------------------------------------- measuring


class Counted:
    """FLOPs of steps on these batches, the mean."""

    def __init__(self, subject: Subject, batches: list[Batch]) -> None:
        rows = len(batches[0])
        cost = row_cost(subject.sketch(), max_objects=OBJECTS)
        losses = loss_flops(
            subject.losses,
            rows=rows,
            columns=rows,
            width=subject.config.model.width,
            objects=OBJECTS,
            banks=bank_shapes(subject.banks(torch.device("cpu"))),
        )
        whole = [[(rows, batch.tokens_BL.shape[1])] for batch in batches]
        self.padded = losses + float(np.mean([batch_flops(cost, groups) for groups in whole]))
        self.worked = losses + float(np.mean([batch_flops(cost, worked_on(batch)) for batch in batches]))
        real = [[(1, length) for length in lengths_of(batch)] for batch in batches]
        self.real = losses + float(np.mean([batch_flops(cost, groups) for groups in real]))
        grouped = [worked_on(replace(batch, lengths=lengths_of(batch))) for batch in batches]
        self.grouped = losses + float(np.mean([batch_flops(cost, groups) for groups in grouped]))


def measure_case(
    subject: Subject, rows: int, world: World, *, peak: float, with_levers: bool
) -> tuple[list[harness.Row], dict[str, list[float]], Counted]:
    """Time ours, with and without levers, and open_clip's step of the same dual encoder, in turns."""
    device = world.device
    batches = subject.batches(rows, BATCHES, device)
    counted = Counted(subject, batches)
    often, steps = repeats(device)
    ours = Ours(subject, batches, world=world)
    sides = {name: synchronised(ours, device, times=steps) for name in ("promptmeup", "promptmeup again")}
    if with_levers:
        for name, lever in levers(device).items():
            sides[name] = synchronised(within(lever, ours, times=steps), device)
    if subject.kind == "dual encoder" or with_levers:
        other = 0 if ours.engine.zero_optimization_stage() else 1
        config = subject.config.engine.model_copy(update={"zero_stage": other})
        sides[f"promptmeup, ZeRO {other}"] = synchronised(
            Ours(subject, batches, world=world, engine=config), device, times=steps
        )
    if subject.kind == "dual encoder":
        try:
            sides[OPEN_CLIP] = synchronised(theirs(subject, batches, world, steps=steps), device)
        except MissingPeerError as error:
            print(f"not measured: {error}", file=sys.stderr)
    timed = harness.interleave(sides, repeats=often, warmups=WARMUPS)
    seconds = {name: [value / steps for value in values] for name, values in timed.items()}
    found: list[harness.Row] = []
    for name, values in seconds.items():
        time = harness.spread(values)
        flops = {WHOLE: counted.padded, OPEN_CLIP: counted.padded, GROUPED: counted.grouped}.get(
            name, counted.worked
        )
        found.append(
            {
                "model": f"{subject.scale}, {subject.kind}",
                "rows": rows,
                "step": name,
                "ms": 1000 * time.median,
                "p25": 1000 * time.p25,
                "p75": 1000 * time.p75,
                "against ours": float(np.median(np.array(values) / np.array(seconds["promptmeup"]))),
                "pairs/s": rows / time.median,
                "GFLOP a pair": flops / rows / 1e9,
                "TFLOP/s": flops / time.median / 1e12,
                "MFU": flops / time.median / peak,
                "MFU, real tokens": counted.real / time.median / peak,
                "GB": memory_of(sides[name], device),
            }
        )
    return found, seconds, counted


def theirs(subject: Subject, batches: list[Batch], world: World, *, steps: int) -> Callable[[], object]:
    """Return what makes steps of open_clip's."""
    from tests.benchmarks.peers.open_clip_step import open_clip_steps

    precision: Any = "amp_bf16" if world.device.type == "cuda" else "fp32"
    config = subject.config.optim
    return open_clip_steps(
        subject.model(world.device),
        batches,
        world=world,
        steps=steps,
        precision=precision,
        lr=config.lr,
        weight_decay=config.weight_decay,
    )


def memory_of(step: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak of a step on a GPU, all that lies there included, in GB."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def parts_of(subject: Subject, rows: int, world: World) -> tuple[list[harness.Row], dict[str, float]]:
    """Return where the time of a step goes, and save the events."""
    ours = Ours(subject, subject.batches(rows, BATCHES, world.device), world=world)
    ours()
    found = breakdown(ours, ours.model, steps=4, trace=TRACE)
    total = sum(found.values())
    row = {"model": f"{subject.scale}, {subject.kind}", "rows": rows}
    row |= {part: seconds / total for part, seconds in found.items()}
    return [row], found


# ---------------------------------------------------------------------------------------------------- the command

RUN_STEPS, RUN_WARMUP = 40, 10


def command(scale: Scale, rows: int, world: World, *, shards: Path, labels: bool, steps: int) -> Clock:
    """Train with the command's own code on packed shards."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"out={folder}/run", f"data.train={shards}", "data.val=null", "tracking.uri=null"]
        overrides += [f"global_batch={rows * world.size}", "epochs=null", f"steps={steps}", "save_every=0"]
        if not labels:
            overrides += ["loss.weights.object_entity=0", "loss.weights.image_relation=0"]
        if world.device.type == "cpu":
            overrides += ["data.workers=1"]
        config = settings(scale, *overrides)
        clock = Clock(world.device, warmup=RUN_WARMUP)
        with clock.watching(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            assert pretrain.train(config, world) == 0
    return clock


def measure_command(scale: Scale, rows: int, world: World) -> tuple[list[harness.Row], dict[str, float]]:
    """Return the time of steps of a real run, and what of it is not the step's own."""
    given = os.environ.get("SHARDS")
    with tempfile.TemporaryDirectory() as folder:
        shards = (
            Path(given).resolve()
            if given
            else write_packed_split(
                Path(folder) / "packed" / "train",
                num_images=256,
                captions_per_image=4,
                boxes_per_image=3,
                seed=0,
            )
        )
        clock = command(scale, rows, world, shards=shards, labels=bool(given), steps=RUN_STEPS)
    row = {
        "run of": f"{scale}, student" + ("" if given else ", without soft labels"),
        "shards": given or "drawn photos",
        "rows": rows,
        "steps": clock.steps,
        "ms a step": 1000 * clock.seconds,
        "pairs/s": rows * world.size / clock.seconds,
        "overhead": clock.overhead,
    }
    return [row], {
        "loop_overhead": clock.overhead,
        "command_pairs_per_second": rows * world.size / clock.seconds,
    }


def peak_memory(scale: Scale, kind: str, rows: int) -> dict[str, float]:
    """Return what a training adds to resident memory, GB, each lever in a process of its own (CPU)."""
    found = {}
    for name in ("", WHOLE, "selective checkpointing", "full checkpointing"):
        words = [sys.executable, "-m", "tests.benchmarks.step", "--memory", scale, kind, str(rows), name]
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found[name or "promptmeup"] = float(json.loads(output.splitlines()[-1]))
    return found


def one_memory(scale: Any, kind: str, rows: str, name: str) -> float:
    """Return what model, optimizer and three steps add to this process's largest resident memory, GB."""
    world = join()
    torch.set_num_threads(1)
    before = largest_resident()
    subject = Subject(scale, kind)
    ours = Ours(subject, subject.batches(int(rows), BATCHES, world.device), world=world)
    with levers(world.device)[name](ours) if name else nullcontext():
        for _ in range(3):
            ours()
    return largest_resident() - before


COMPILE_SECONDS = 130
"""within which layers must be compiled and measured"""


def compiled(subject: Subject, rows: int) -> dict[str, float]:
    """Return what compiled layers do to a step, in a process of its own, which may take too long or fail."""
    words = [
        sys.executable,
        "-m",
        "tests.benchmarks.step",
        "--compiled",
        subject.scale,
        subject.kind,
        str(rows),
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"compiled layers: not measured, more than {COMPILE_SECONDS} s")
        return {}
    except subprocess.CalledProcessError as error:
        print(f"compiled layers: not measured: {error.stderr[-2000:]}")
        return {}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_compiled(scale: Any, kind: str, rows: str) -> dict[str, float]:
    """Return the times of a step with compiled layers as a multiple of those without, in turns."""
    world = join()
    subject = Subject(scale, kind)
    batches = subject.batches(int(rows), BATCHES, world.device)
    often, steps = repeats(world.device)
    model = subject.model(world.device)
    compile_layers(model)
    sides = {
        "eager": Ours(subject, batches, world=world),
        "compiled": Ours(subject, batches, world=world, model=model),
    }
    began = time.perf_counter()
    for _ in range(2 * BATCHES):
        synchronised(sides["compiled"], world.device)()
    took = time.perf_counter() - began
    timed = harness.interleave(
        {name: synchronised(side, world.device, times=steps) for name, side in sides.items()}, repeats=often
    )
    eager, fast = (np.array(timed[name]) / steps for name in sides)
    return {
        "times: compiled layers": float(np.median(fast / eager)),
        "compiled: seconds of the first steps": took,
        "compiled: pairs/s": int(rows) / float(np.median(fast)),
    }


def largest_resident() -> float:
    """Return GB; not getrusage's, which a process has from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def measure() -> tuple[list[harness.Row], Mapping[str, float]]:
    """The training step, ours and open_clip's, its levers and its parts."""
    world = join()
    device = world.device
    if device.type == "cpu":
        torch.set_num_threads(1)  # more wait for each other where cores are shared
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    peak = device_peak(device, dtype)
    print(
        f"peak: {peak / 1e12:.3g} TFLOP/s, {'data sheet' if device.type == 'cuda' else 'measured'}, {dtype}\n"
    )
    rows: list[harness.Row] = []
    summary: dict[str, float] = {"peak_tflops": peak / 1e12}
    todo = cases(device)
    for number, (subject, count) in enumerate(todo):
        is_last = number == len(todo) - 1
        try:
            found, seconds, _ = measure_case(subject, count, world, peak=peak, with_levers=is_last)
        except torch.OutOfMemoryError:
            print(f"out of memory: {subject}, {count} rows")
            continue
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        rows += found
        print(harness.table(found), end="\n\n", flush=True)
        ours = np.array(seconds["promptmeup"])
        if OPEN_CLIP in seconds:
            key = f"vs_open_clip_{subject.scale}_{count}"
            summary[key] = summary["vs_open_clip"] = float(np.median(np.array(seconds[OPEN_CLIP]) / ours))
        if is_last:
            summary["mfu"] = next(float(row["MFU"]) for row in found if row["step"] == "promptmeup")
            summary["pairs_per_second"] = count / float(np.median(ours))
            summary["noise"] = float(np.median(np.array(seconds["promptmeup again"]) / ours))
            for name in levers(device):
                summary[f"times: {name}"] = float(np.median(np.array(seconds[name]) / ours))
    subject, count = todo[-1]
    parts, found_parts = parts_of(subject, count, world)
    print(harness.table(parts), end="\n\n")
    summary |= {f"share: {part}": value / sum(found_parts.values()) for part, value in found_parts.items()}
    run, more = measure_command(subject.scale, count, world)
    print(harness.table(run), end="\n\n")
    summary |= more
    if device.type == "cuda" or os.environ.get("COMPILE"):
        gc.collect()
        faster = compiled(subject, count)
        if faster:
            faster["compiled: mfu"] = summary["mfu"] / faster["times: compiled layers"]
        summary |= faster
    if device.type == "cpu":
        summary |= {
            f"GB: {name}": value for name, value in peak_memory(subject.scale, subject.kind, count).items()
        }
    return rows, summary


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(one_memory(*sys.argv[2:]))
    elif sys.argv[1:2] == ["--compiled"]:
        print(json.dumps(one_compiled(*sys.argv[2:])))
    else:
        harness.run("step", measure)
