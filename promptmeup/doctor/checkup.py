"""One check-up, on every rank: meet, exchange, look at this node, and hand the findings in to rank 0, which joins them.

Findings travel through the store where the ranks met and not through the collectives, which are on trial here: a rank
that is missing or hangs is named by the others.
"""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch

from promptmeup.distributed.bandwidth import backend_of, measure_exchanges
from promptmeup.distributed.roll_call import RollCall, alone, call_roll
from promptmeup.distributed.world import choose_device, place
from promptmeup.doctor import corpora, devices, disk, job, machine, weights
from promptmeup.doctor.finding import Finding, Report, failed, look, ok, together, warning, where
from promptmeup.errors import TrainingError, WeightsError
from promptmeup.tracking.mlflow_run import insist_on_mlflow
from promptmeup.tracking.reach import reach
from promptmeup.tracking.settings import TrackingConfig
from promptmeup.training.settings import PretrainConfig

Join = Callable[[Mapping[int, Finding], Mapping[int, str]], Finding]
SLOW_NCCL = 2.0
"""GB/s of bus bandwidth between GPUs below which something is wrong: 25 Gbit/s Ethernet gives 3, NVLink hundreds"""


@dataclass(frozen=True)
class Settings:
    """How to look."""

    config: PretrainConfig | None
    """None: the machine alone"""
    timeout: float = 60.0
    """seconds to wait for the other ranks, for the exchanges, and for their findings"""
    full: bool = False
    """compare every shard with its SHA-256"""
    cpu_is_meant: bool = False
    """GPUs that are not used are no mistake"""


@dataclass(frozen=True)
class Outcome:
    """What a rank is left with."""

    report: Report | None
    """on rank 0"""
    hangs: bool
    """a collective is still under way: leave by os._exit"""


def check_up(settings: Settings) -> Outcome:
    """Look at everything on this rank; on rank 0, return what all found.

    Raises:
        ConfigError: the launcher's variables contradict each other, or the ranks were not told where to meet.
        TrainingError: this rank, which is not rank 0, reaches nobody.
    """
    rank, size, local_rank = place(os.environ)
    config = settings.config
    own = [look("devices", devices.device, local_rank, cpu_is_meant=settings.cpu_is_meant)]
    with disk.probe_file(config.out if config and rank == 0 else None) as notice:
        meeting, call = _meet(rank, size, settings.timeout, notice)
        exchanges, hangs = _exchange(call, local_rank, settings.timeout)
        ranks_here = sum(host == call.hosts[rank] for host in call.hosts.values())
        own += [exchanges, *_own_checks(settings, call, ranks_here)]
        call.hand_in([asdict(found) for found in own])
        if rank != 0:
            return Outcome(None, hangs)
        # the whole corpus takes as long as it takes
        wait = max(settings.timeout, 86400.0) if settings.full else settings.timeout
        handed_in = {
            other: {values["name"]: Finding.of(values) for values in found}
            for other, found in call.collect(wait).items()
        }
    silent = sorted(set(call.hosts) - set(handed_in))
    if silent:
        text = (
            f"{where(silent, call.hosts)} came and then said nothing more within {wait:g} s: look at what they "
            "printed, and whether a file system hangs there (--timeout waits longer)"
        )
        meeting = failed(text, **meeting.facts)
    joined = _join(handed_in, call.hosts, settings)
    lines = [
        look("launcher", job.launcher),
        look("time left", job.time_left),
        look("ranks", lambda: meeting),
        *joined,
        *_main_checks(settings, size),
    ]
    return Outcome(Report(tuple(lines), call.hosts, size), hangs)


def _meet(rank: int, size: int, timeout: float, notice: dict[str, str]) -> tuple[Finding, RollCall]:
    """Return what came of the roll call; rank 0 goes on alone where it cannot be held."""
    here = socket.gethostname()
    if size == 1:
        return ok(f"one, on {here}"), call_roll(rank, size, timeout=timeout, notice=notice)
    try:
        call = call_roll(rank, size, timeout=timeout, notice=notice)
    except TrainingError as error:
        if rank != 0:
            raise
        left = alone(rank, size)
        left.notice = notice
        return failed(str(error)), left
    facts = {"address": call.address, "seconds": round(call.seconds, 2), "missing": call.missing}
    if call.missing:
        text = (
            f"{_numbers(call.missing)} of {size} did not come to {call.address} within {timeout:g} s; here are "
            f"{where(list(call.hosts), call.hosts)}: see what the missing ones printed, and whether their "
            "node is up and "
            "reaches this address (--timeout waits longer)"
        )
        return failed(text, **facts), call
    hosts = list(dict.fromkeys(call.hosts.values()))
    shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
    return ok(f"{size} on {shown} met at {call.address} in {call.seconds:.1f} s", **facts), call


def _numbers(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _exchange(call: RollCall, local_rank: int, timeout: float) -> tuple[Finding, bool]:
    """Return what the collectives gave on this rank, and whether one is still under way."""
    if call.size == 1:
        return look("exchanges", lambda: ok("alone: nothing to exchange")), False
    if call.missing:
        reason = f"not measured: {_numbers(call.missing)} missing; see ranks"
        return look("exchanges", lambda: failed(reason)), False
    hangs = [False]
    found = look("exchanges", _exchanges, call, local_rank, timeout, hangs)
    return found, hangs[0]


def _exchanges(call: RollCall, local_rank: int, timeout: float, hangs: list[bool]) -> Finding:
    device = choose_device(local_rank, num_devices=torch.cuda.device_count())
    measured, problem = measure_exchanges(
        call.store, rank=call.rank, size=call.size, device=device, timeout=timeout
    )
    backend = backend_of(device)
    facts = {"backend": backend, "measured": [asdict(one) for one in measured]}
    if problem:
        hangs[0] = True  # after an error, too: the group is not taken apart
        interface = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        more = "NCCL_DEBUG=INFO says more, " if backend == "nccl" else ""
        return failed(
            f"{backend}, {problem}; {more}{interface} chooses the network between the nodes (see ip "
            "addr), and a firewall "
            "may not close it",
            **facts,
        )
    wrong = [one.name for one in measured if not one.is_right]
    if wrong:
        return failed(
            f"{backend}, {' and '.join(wrong)} returned wrong numbers: do not train on these nodes; try "
            "them one by one "
            "(--nodelist) and report the one that is broken",
            **facts,
        )
    each = ", ".join(f"{one.name} {one.gigabytes:.2f} GB/s {one.microseconds:.0f} µs" for one in measured)
    text = f"{backend}: {each} (bus bandwidth at {measured[0].bytes >> 20} MiB; sums are right)"
    if backend == "nccl" and min(one.gigabytes for one in measured) < SLOW_NCCL:
        return warning(
            f"{text}: slow for GPUs; NCCL_DEBUG=INFO says which way it takes (sockets in the place of "
            "InfiniBand or NVLink?)",
            **facts,
        )
    return ok(text, **facts)


def _own_checks(settings: Settings, call: RollCall, ranks_here: int) -> list[Finding]:
    """Return what every rank looks at by itself."""
    config, rank, size = settings.config, call.rank, call.size
    data = config.data if config else None
    rows = config.global_batch // size if config else 0
    found = [
        look("clocks", lambda: ok("", seconds=call.clock_offset)),
        look("cores", machine.cores),
        look("shared memory", machine.shared_memory, data, rows=rows, ranks=ranks_here),
        look("open files", machine.open_files, data),
        look("versions", machine.software),
    ]
    if config is None:
        return found
    for key, location in corpora.locations(config.data).items():
        found.append(
            look(key, corpora.split, location, config.data.cache, rank=rank, size=size, full=settings.full)
        )
    if corpora.is_staged(config.data):
        found.append(look("cache", corpora.cache, config.data))
    found += [
        look("soft labels", corpora.labels, config),
        look("weights", weights.present, config),
    ]
    if rank != 0:
        found.append(look("run folder", disk.sees_probe, call.notice))
    else:
        found.append(look("run folder", _room, config, call.notice))
    return found


def _room(config: PretrainConfig, notice: dict[str, str]) -> Finding:
    seen = disk.sees_probe(notice)
    if seen.status != "ok":
        return seen
    try:
        parameters = weights.count_parameters(config.model)
    except WeightsError:  # which "weights" reports
        return disk.free_room(config.out, "how much the run needs is not known before its weights are here")
    return disk.room(config, parameters=parameters)


def _join(
    handed_in: Mapping[int, Mapping[str, Finding]], hosts: Mapping[int, str], settings: Settings
) -> list[Finding]:
    """Return one finding for each check that ranks made."""
    data = settings.config.data if settings.config else None
    special: dict[str, Join] = {
        "devices": devices.devices,
        "clocks": machine.clocks,
        "cores": partial(machine.cores_of_nodes, data=data),
        "versions": machine.same_software,
    }
    if data:
        special |= dict.fromkeys(corpora.locations(data), corpora.same_split)
    names = dict.fromkeys(name for found in handed_in.values() for name in found)
    joined = []
    for name in names:
        by_rank = {rank: found[name] for rank, found in handed_in.items() if name in found}
        joined.append(look(name, special.get(name, together), by_rank, hosts))
    return joined


def _main_checks(settings: Settings, size: int) -> list[Finding]:
    """Return what rank 0 alone looks at."""
    config = settings.config
    if config is None:
        found = [look("disk", disk.current_folder)]
    else:
        found = [
            look("global batch", _batch, config.global_batch, size),
            look("checkpoint", disk.start_point, config),
        ]
    return [*found, look("tracker", _tracker, config.tracking if config else TrackingConfig())]


def _batch(global_batch: int, size: int) -> Finding:
    lower, upper = global_batch // size * size, -(-global_batch // size) * size
    if lower != global_batch:
        return failed(
            f"{global_batch} pairs do not divide over {size} ranks: set global_batch={lower or upper}"
            f"{f' or {upper}' if lower else ''}",
            global_batch=global_batch,
        )
    return ok(f"{global_batch} pairs, {global_batch // size} a rank", global_batch=global_batch)


def _tracker(tracking: TrackingConfig) -> Finding:
    if tracking.uri is None:
        return ok("MLflow is switched off (tracking.uri=null); the journal has every value")
    insist_on_mlflow(tracking.uri)
    answers, text = reach(tracking.uri)
    return ok(f"MLflow: {text}") if answers else warning(f"MLflow: {text}")
