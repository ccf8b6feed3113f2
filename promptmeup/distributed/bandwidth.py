"""How fast, and whether rightly, the ranks exchange tensors: the exchanges of a training step, measured.

Bandwidth is nccl-tests' bus bandwidth: of S bytes (all that is gathered, scattered or summed) in t seconds on n ranks,
S/t (n-1)/n for all-gather, reduce-scatter and all-to-all, and S/t 2(n-1)/n for all-reduce. It is what the slowest link
carried, so that numbers of ranks can be compared.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World

SMALL = 256  # bytes a rank
LARGE = {"cuda": 64 << 20, "cpu": 4 << 20}  # bytes of all ranks together
REPEAT = {"small": 20, "large": 5}


@dataclass(frozen=True)
class Measured:
    """One kind of exchange."""

    name: str
    microseconds: float
    """mean of a small one, start to end"""
    gigabytes: float
    """bus bandwidth of a large one, 10^9 bytes a second"""
    bytes: int
    """S of the large one"""
    is_right: bool
    """whether every number that came is the one expected, in both sizes"""


def measure_exchanges(
    store: Any, *, rank: int, size: int, device: torch.device, timeout: float
) -> tuple[list[Measured], str]:
    """Measure on every rank; return what was measured, and what went wrong ("" where nothing did).

    It runs in a thread of its own, since a collective whose peer hangs cannot be ended: where that happens the thread
    is still there, and the process must leave by `os._exit`. Call it once a process.
    """
    found: list[Measured] = []
    stage, problem = ["joining"], [""]

    def work() -> None:
        try:
            _measure_all(found, stage, store=store, rank=rank, size=size, device=device, timeout=timeout)
        except Exception as error:
            # without the places in gloo's own sources
            text = re.sub(r"\[/\S+\.cc:\d+\] ", "", " ".join(str(error).split()))
            problem[0] = f"{stage[0]}: {text[:300]}"

    thread = threading.Thread(target=work, name="exchanges", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        return found, f"{stage[0]} did not end within {timeout:g} s"
    return found, problem[0]


def backend_of(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _measure_all(
    found: list[Measured],
    stage: list[str],
    *,
    store: Any,
    rank: int,
    size: int,
    device: torch.device,
    timeout: float,
) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = backend_of(device)
    # longer than the thread is waited for: NCCL ends the whole process when its own time is over
    limit = timedelta(seconds=2 * timeout + 30)
    apart = dist.PrefixStore("exchanges", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=apart, rank=rank, world_size=size, timeout=limit)
    exchange = WorldExchange(World(rank, size, 0, device))
    for name, run, make, share in (
        ("all-gather", lambda rows: exchange.gather(rows)(), _gathered, 1),
        (
            "all-to-all" if backend == "gloo" else "reduce-scatter",
            lambda rows: exchange.scatter_sum(rows)(),
            _scattered,
            1,
        ),
        ("all-reduce", exchange.sum, _summed, 2),
    ):
        stage[0] = name
        found.append(_measure(name, run, make, share=share, rank=rank, size=size, device=device))
    dist.destroy_process_group()


Maker = Callable[[int, int, int, torch.device], tuple[Tensor, Tensor]]
"""(bytes of all ranks, rank, size, device) -> what goes in, and what must come out"""


def _pattern(numbers: int, device: torch.device) -> Tensor:
    """[numbers] small whole numbers, whose sums over ranks float32 holds exactly."""
    return (torch.arange(numbers, device=device) % 251).float()


def _rows(total: int, size: int) -> int:
    return max(1, total // 4 // size)


def _gathered(total: int, rank: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    own = _pattern(_rows(total, size), device)
    return own + rank, torch.cat([own + other for other in range(size)])


def _scattered(total: int, rank: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = _rows(total, size)
    whole = _pattern(rows * size, device)
    own = whole[rank * rows : (rank + 1) * rows]
    return whole + rank, own * size + size * (size - 1) / 2


def _summed(total: int, rank: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    whole = _pattern(_rows(total, 1), device)
    return whole + rank, whole * size + size * (size - 1) / 2


def _measure(
    name: str,
    run: Callable[[Tensor], Tensor],
    make: Maker,
    *,
    share: int,
    rank: int,
    size: int,
    device: torch.device,
) -> Measured:
    is_right = True
    seconds: dict[str, float] = {}
    large = LARGE[device.type]
    for kind, total in (("small", SMALL * size), ("large", large)):
        rows, expected = make(total, rank, size, device)
        is_right &= torch.equal(run(rows), expected)  # the first one connects: not timed
        _wait(device)
        start = time.perf_counter()
        for _ in range(REPEAT[kind]):
            run(rows)
        _wait(device)
        seconds[kind] = (time.perf_counter() - start) / REPEAT[kind]
    bus = large / seconds["large"] * share * (size - 1) / size
    return Measured(name, seconds["small"] * 1e6, bus / 1e9, large, is_right)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
