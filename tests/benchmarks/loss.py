"""The contrastive step against open_clip's ClipLoss: time, memory, accuracy, exchanges; on CPU ranks and on a GPU.

Every side must first give the float64 gradient of the whole batch, or it is not timed. Sides run in turns; ours runs
twice in each turn, and how much these two differ is the noise below which no ratio means anything ("A/A").
"""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from promptmeup.distributed.world import World
from tests.benchmarks import harness
from tests.benchmarks.peers import contrastive
from tests.benchmarks.peers.contrastive import Loss, Sets
from tests.benchmarks.peers.peer import MissingPeerError
from tests.support.ranks import run_ranks

OURS, AGAIN, OPEN_CLIP = "promptmeup", "promptmeup again", "open_clip"
WATCHED, HALVED = "promptmeup, accuracy watched", "promptmeup, bfloat16"
METHOD = "promptmeup, prompts on every rank"
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
WARMUPS, REPEATS = 2, 7
WIDTH = 256
MEMORY_ROWS = 12288
FP32_ERROR, BF16_ERROR = 1e-5, 6e-2
"""largest relative error of a gradient with which a side is timed: float32, and bfloat16 on a GPU"""
GPU_ROWS, GPU_WIDTHS, GPU_SCALES = (4096, 16384, 32768, 65536), (256, 512), (14.3, 100.0)
GPU_HEADLINE = (32768, 512, 14.3)
GPU_REPEATS = 5


@dataclass(frozen=True)
class Case:
    ranks: int
    rows: int
    """of a rank"""
    losses: int
    scale: float
    width: int = WIDTH


class WrongGradientError(RuntimeError):
    """A side does not compute the loss."""


CASES = (
    Case(1, 2048, 1, 14.3),
    Case(1, 2048, 3, 14.3),
    Case(2, 128, 3, 14.3),
    Case(2, 512, 3, 14.3),
    Case(2, 2048, 3, 14.3),
    Case(2, 2048, 3, 100.0),
    Case(4, 512, 3, 14.3),
)
HEADLINE = (CASES[4], CASES[5])


def features(case: Case, *, seed: int) -> Sets:
    """Return the whole world's rows, float32: partners a little more alike than others, early in a training."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(case.ranks * case.rows, case.width, generator=generator)

    sets = []
    for _ in range(case.losses):
        x = normal()
        sets.append((F.normalize(x, dim=-1), F.normalize(x + 8 * normal(), dim=-1)))
    return sets


def _own(sets: Sets, case: Case, world: World) -> Sets:
    rows = slice(world.rank * case.rows, (world.rank + 1) * case.rows)
    return [(x[rows].to(world.device), y[rows].to(world.device)) for x, y in sets]


def gradients(loss: Loss, sets: Sets, scale: float, *, ranks: int) -> list[Tensor]:
    """Return each leaf's gradient as the engine averages it, rows first, the scale's (of this rank) last."""
    leaves = [tuple(t.detach().clone().requires_grad_() for t in pair) for pair in sets]
    scale_1 = torch.tensor([scale], device=sets[0][0].device, requires_grad=True)
    loss([(x, y) for x, y in leaves], scale_1).backward()
    found = [leaf.grad for pair in leaves for leaf in pair] + [scale_1.grad]
    assert all(gradient is not None for gradient in found)
    return [gradient / ranks for gradient in found if gradient is not None]


def truth(sets: Sets, case: Case, world: World) -> list[Tensor]:
    """Return this rank's rows of the float64 gradient of the whole batch, and the scale's."""
    leaves = [tuple(t.double().to(world.device).requires_grad_() for t in pair) for pair in sets]
    scale = torch.tensor([case.scale], dtype=torch.float32).double().to(world.device).requires_grad_()
    labels = torch.arange(len(sets[0][0]), device=world.device)
    for x, y in leaves:
        logits = scale * x @ y.T
        ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2).backward()
    rows = slice(world.rank * case.rows, (world.rank + 1) * case.rows)
    found = [leaf.grad[rows] for pair in leaves for leaf in pair if leaf.grad is not None]
    assert scale.grad is not None
    return [*found, scale.grad]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative difference of a leaf."""
    pairs = zip(found, expected, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def _whole_scale(found: list[Tensor], world: World) -> list[Tensor]:
    """Add up the scale's gradient over the ranks, as the engine does."""
    if world.size > 1:
        dist.all_reduce(found[-1])
    return found


def gate(sides: dict[str, Loss], case: Case, world: World, *, limit: float) -> dict[str, float]:
    """Return each side's error; raise where one is wrong. Run twice on other numbers, so nothing stale passes."""
    errors = dict.fromkeys(sides, 0.0)
    for seed in (1, 2):
        whole = features(case, seed=seed)
        expected = truth(whole, case, world)
        for name, loss in sides.items():
            found = gradients(loss, _own(whole, case, world), case.scale, ranks=world.size)
            errors[name] = max(errors[name], difference(_whole_scale(found, world), expected))
    wrong = {name: error for name, error in errors.items() if not error < limit}
    if wrong:
        raise WrongGradientError(
            f"{case}: the gradient is wrong by {wrong} (allowed {limit}); nothing is timed"
        )
    return errors


def _loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "scatter",
)


def count_exchanges(step: Callable[[], object], world: World) -> dict[str, float]:
    """Return the collectives of a step and the bytes that all ranks together put on the (loopback) wire."""
    calls: list[str] = []
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def counted(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(name)
            return originals[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name))
    dist.barrier()
    before = _loopback_bytes()
    step()
    dist.barrier()
    moved = _loopback_bytes() - before
    for name, original in originals.items():
        setattr(dist, name, original)
    # torch's differentiable gather returns its gradients on gloo by one scatter from each rank
    scatters = calls.count("scatter")
    return {"collectives": len(calls) - scatters + scatters / world.size, "bytes": moved}


def _step(loss: Loss, sets: Sets, scale: float) -> Callable[[], object]:
    leaves = [tuple(t.detach().requires_grad_() for t in pair) for pair in sets]
    scale_1 = torch.tensor([scale], device=sets[0][0].device, requires_grad=True)

    def step() -> None:
        for leaf in (leaf for pair in leaves for leaf in pair):
            leaf.grad = None
        loss([(x, y) for x, y in leaves], scale_1).backward()

    return step


def on_rank(world: World, case: Case) -> dict[str, Any]:
    """Gate, count and time one case on this rank."""
    warnings.simplefilter("ignore", FutureWarning)  # of the names that open_clip calls in torch
    sides = {OURS: contrastive.ours(world), OPEN_CLIP: contrastive.open_clip(world)}
    errors = gate(sides, case, world, limit=FP32_ERROR)
    own = _own(features(case, seed=3), case, world)
    ours, theirs = (
        _whole_scale(gradients(loss, own, case.scale, ranks=world.size), world) for loss in sides.values()
    )
    steps = {name: _step(loss, own, case.scale) for name, loss in sides.items()}
    exchanges = {}
    if world.size > 1:
        halved = contrastive.ours(world, dtype=torch.bfloat16)
        more = steps | {
            HALVED: _step(halved, own, case.scale),
            METHOD: _step(contrastive.the_method(world), own, case.scale),
        }
        exchanges = {name: count_exchanges(step, world) for name, step in more.items()}

    def together(step: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            step()
            if world.size > 1:
                dist.barrier()

        return run

    timed = {name: together(step) for name, step in steps.items()}
    timed[AGAIN] = timed[OURS]
    timed[WATCHED] = together(_step(contrastive.ours(world, watch_accuracy=True), own, case.scale))
    seconds = harness.interleave(timed, repeats=REPEATS, warmups=WARMUPS)
    return {
        "errors": errors,
        "difference": difference(ours, theirs),
        "exchanges": exchanges,
        "seconds": seconds,
    }


MEMORY = """
import json, sys
from pathlib import Path
import torch
from tests.benchmarks import loss
from tests.benchmarks.peers import contrastive

def megabytes(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024

side = {"promptmeup": contrastive.ours, "open_clip": contrastive.open_clip}[sys.argv[1]](loss.ALONE)
rows = int(sys.argv[2])
small = loss.Case(1, 64, 1, 14.3)
loss._step(side, loss.features(small, seed=0), small.scale)()
case = loss.Case(1, rows, 1, 14.3)
step = loss._step(side, loss.features(case, seed=0), case.scale)
Path("/proc/self/clear_refs").write_text("5")
before = megabytes("VmRSS")
step()
print(json.dumps(megabytes("VmHWM") - before))
"""


def megabytes(side: str, rows: int) -> float:
    """Return how much the resident memory of a fresh process grows in one step of one loss."""
    command = [sys.executable, "-c", MEMORY, side, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _times_as_fast(seconds: dict[str, list[float]], name: str) -> float:
    """Return the median over the turns of open_clip's time by that of `name`."""
    return float(np.median(np.array(seconds[OPEN_CLIP]) / np.array(seconds[name])))


def measure_cpu() -> tuple[list[harness.Row], dict[str, float]]:
    """Ranks on a CPU, gloo, one thread each."""
    rows: list[harness.Row] = []
    found: dict[Case, dict[str, Any]] = {}
    for case in CASES:
        answers = run_ranks(on_rank, case.ranks, case, timeout=900)
        seconds = answers[0]["seconds"]
        times = {name: harness.spread(values) for name, values in seconds.items()}
        again = times[AGAIN].median / times[OURS].median
        found[case] = {
            "speedup": _times_as_fast(seconds, OURS),
            "noise": abs(again - 1),
            "difference": max(answer["difference"] for answer in answers),
            "exchanges": answers[0]["exchanges"],
        }
        for name in (OURS, WATCHED, OPEN_CLIP):
            rows.append(
                {
                    "where": f"{case.ranks} ranks",
                    "b": case.rows,
                    "D": case.width,
                    "losses": case.losses,
                    "1/temperature": case.scale,
                    "side": name,
                    "ms": 1000 * times[name].median,
                    "p25": 1000 * times[name].p25,
                    "p75": 1000 * times[name].p75,
                    "times as fast": _times_as_fast(seconds, name),
                    "A/A": again if name == OURS else None,
                    "error": max(answer["errors"].get(name, 0.0) for answer in answers) or None,
                }
            )
    memory = {name: megabytes(name, MEMORY_ROWS) for name in (OURS, OPEN_CLIP)}
    per_logit = {name: value * 2**20 / MEMORY_ROWS**2 for name, value in memory.items()}
    early, late = (found[case] for case in HEADLINE)
    exchanges = early["exchanges"]
    wire = {name: counted["bytes"] / exchanges[OPEN_CLIP]["bytes"] for name, counted in exchanges.items()}
    return rows, {
        "speedup_vs_open_clip": early["speedup"],
        "speedup_at_temperature_001": late["speedup"],
        "noise": max(early["noise"], late["noise"]),
        "gradient_difference": early["difference"],
        "gradient_difference_at_temperature_001": late["difference"],
        "bytes_per_logit": per_logit[OURS],
        "bytes_per_logit_open_clip": per_logit[OPEN_CLIP],
        "collectives": exchanges[OURS]["collectives"],
        "collectives_open_clip": exchanges[OPEN_CLIP]["collectives"],
        "wire_bytes_ratio": wire[METHOD],
        "wire_bytes_ratio_all_gathered": wire[OURS],
        "wire_bytes_ratio_all_gathered_bf16": wire[HALVED],
    }


def gpu_sides(world: World) -> tuple[dict[str, Loss], list[str]]:
    """Return the sides that can be imported, and what is missing."""
    makers: dict[str, Callable[[], Loss]] = {
        OURS: lambda: contrastive.ours(world, dtype=torch.bfloat16),
        OPEN_CLIP: lambda: contrastive.open_clip(world, autocast=True),
        "inf_cl": lambda: contrastive.inf_cl(world),
        "cut-cross-entropy": contrastive.cut_cross_entropy,
        "liger": contrastive.liger,
        "liger, chunks x 8": lambda: contrastive.liger(chunks=8),
    }
    sides, missing = {}, []
    for name, make in makers.items():
        try:
            sides[name] = make()
        except (MissingPeerError, ImportError, OSError) as error:
            missing.append(f"{name}: {error}")
    return sides, missing


def measure_gpu() -> tuple[list[harness.Row], dict[str, float]]:
    """One GPU, one loss, bfloat16 products (open_clip: under autocast)."""
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0))
    sides, missing = gpu_sides(world)
    for line in missing:
        print(f"not measured: {line}")
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}
    for scale in GPU_SCALES:
        for width in GPU_WIDTHS:
            small = Case(1, GPU_ROWS[0], 1, scale, width)
            sound = {}
            for name, loss in sides.items():
                try:
                    sound[name] = gate({name: loss}, small, world, limit=BF16_ERROR)[name]
                except (
                    Exception
                ) as error:  # a peer that fails on this GPU must not end the others' measurement
                    if name == OURS:
                        raise
                    print(f"not measured at 1/temperature {scale}, D {width}: {name}: {error}")
            for count in GPU_ROWS:
                case = Case(1, count, 1, scale, width)
                if scale != GPU_SCALES[0] and (count, width) != GPU_HEADLINE[:2]:
                    continue
                own = _own(features(case, seed=3), case, world)
                timed = {name: sides[name] for name in sound} | {AGAIN: sides[OURS]}
                found = _time_on_gpu(timed, own, scale)
                print(
                    count, width, scale, {name: f"{1000 * t.median:.2f} ms" for name, (t, _) in found.items()}
                )
                for name, (time, gigabytes) in found.items():
                    rows.append(
                        {
                            "where": torch.cuda.get_device_name(0),
                            "b": count,
                            "D": width,
                            "losses": 1,
                            "1/temperature": scale,
                            "side": name,
                            "ms": 1000 * time.median,
                            "p25": 1000 * time.p25,
                            "p75": 1000 * time.p75,
                            "times as fast": found[OPEN_CLIP][0].median / time.median
                            if OPEN_CLIP in found
                            else None,
                            "A/A": time.median / found[OURS][0].median if name == AGAIN else None,
                            "error": sound.get(name),
                            "TFLOP/s": 8 * count**2 * width / time.median / 1e12,
                            "GB": gigabytes,
                        }
                    )
                if (count, width, scale) == GPU_HEADLINE and OPEN_CLIP in found:
                    ours, theirs = found[OURS], found[OPEN_CLIP]
                    summary["gpu_speedup_vs_open_clip"] = theirs[0].median / ours[0].median
                    summary["gpu_effective_tflops"] = 8 * count**2 * width / ours[0].median / 1e12
                    summary["gpu_bytes_per_logit"] = ours[1] * 1e9 / count**2
                    _try_tiles(sides[OURS], own, scale)
    return rows, summary


def _try_tiles(ours: Loss, own: Sets, scale: float) -> None:
    """Print the time of ours with other sizes of tiles: what tiles_triton's constants should be on this GPU."""
    from promptmeup.losses import tiles_triton

    before = tiles_triton.TILE_ROWS, tiles_triton.TILE_COLUMNS
    for tile in ((1024, 4096), (2048, 2048), (2048, 4096), (4096, 4096), (4096, 8192), (8192, 8192)):
        tiles_triton.TILE_ROWS, tiles_triton.TILE_COLUMNS = tile
        time, gigabytes = _time_on_gpu({OURS: ours}, own, scale)[OURS]
        print(f"tiles of {tile[0]} x {tile[1]}: {1000 * time.median:.2f} ms, {gigabytes:.2f} GB")
    tiles_triton.TILE_ROWS, tiles_triton.TILE_COLUMNS = before


def _time_on_gpu(sides: dict[str, Loss], own: Sets, scale: float) -> dict[str, tuple[harness.Spread, float]]:
    """Return seconds and the peak of memory beyond the inputs, GB, of the sides that do not run out of it."""
    steps = {}
    gigabytes = {}
    too_large: set[str] = set()
    for name, loss in sides.items():
        step = _step(loss, own, scale)
        try:
            step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            gigabytes[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
        except torch.OutOfMemoryError:
            print(f"out of memory: {name}, {len(own[0][0])} rows")
            continue

        def synchronised(name: str = name, step: Callable[[], object] = step) -> None:
            try:
                step()
            except torch.OutOfMemoryError:  # others' leaves lie there too
                too_large.add(name)
                torch.cuda.empty_cache()
            torch.cuda.synchronize()

        steps[name] = synchronised
    seconds = harness.interleave(steps, repeats=GPU_REPEATS, warmups=WARMUPS)
    for name in too_large:
        print(f"out of memory: {name}, {len(own[0][0])} rows")
    return {
        name: (harness.spread(values), gigabytes[name])
        for name, values in seconds.items()
        if name not in too_large
    }


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """Time, memory, accuracy and exchanges of the contrastive step, ours and the peers'."""
    if torch.cuda.is_available():
        return measure_gpu()
    print("no GPU here: CPU ranks are measured\n")
    return measure_cpu()


if __name__ == "__main__":
    harness.run("loss", measure)
