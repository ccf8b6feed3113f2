"""Who of the ranks is there: a store of keys and values that all reach, which works where collectives do not.

torch's own rendezvous says after its timeout that not everybody came; this one says who.
"""

import json
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from promptmeup.distributed.world import meeting_point
from promptmeup.errors import ConfigError, TrainingError

POLL = 0.05  # seconds


@dataclass
class RollCall:
    """The ranks that answered, and what they tell each other through the store."""

    rank: int
    size: int
    store: Any
    hosts: dict[int, str]
    """by rank, of those that came; known on every rank"""
    address: str
    """where they met; "" for one that is alone"""
    seconds: float = 0.0
    """until all were there"""
    notice: dict[str, Any] = field(default_factory=dict)
    """what rank 0 had to say"""
    clock_offset: float = 0.0
    """this host's clock minus that of rank 0's, to some 0.1 s"""

    @property
    def missing(self) -> list[int]:
        return [rank for rank in range(self.size) if rank not in self.hosts]

    def hand_in(self, values: Any) -> None:
        """Leave `values` (JSON) for rank 0."""
        self.store.set(f"report/{self.rank}", json.dumps(values))

    def collect(self, timeout: float) -> dict[int, Any]:
        """Return what every rank left, by rank; those that left nothing within `timeout` seconds are not in it."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + timeout
        while True:
            for rank in [rank for rank in self.hosts if rank not in found]:
                if self.store.check([f"report/{rank}"]):
                    found[rank] = json.loads(self.store.get(f"report/{rank}"))
            if len(found) == len(self.hosts) or time.monotonic() > deadline:
                return dict(sorted(found.items()))
            time.sleep(POLL)


def alone(rank: int, size: int) -> RollCall:
    """Return the roll call of a process that hears nobody else."""
    return RollCall(rank, size, dist.HashStore(), {rank: socket.gethostname()}, "")  # type: ignore[attr-defined]


def call_roll(rank: int, size: int, *, timeout: float, notice: dict[str, Any]) -> RollCall:
    """Meet the others at MASTER_ADDR:MASTER_PORT for `timeout` seconds; go on without those who did not come.

    Args:
        notice: rank 0's is told to all.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT is not set, or no address.
        TrainingError: the address cannot be reached, rank 0 does not answer, or did not wait for this rank.
    """
    if size == 1:
        found = alone(rank, size)
        found.notice = notice
        return found
    host, port = meeting_point(rank, size)
    if not port.isdecimal():
        raise ConfigError(f"MASTER_PORT = {port!r} is not a number; export a free port, such as 29500")
    start = time.monotonic()
    store = _open_store(host, int(port), rank=rank, size=size, timeout=timeout)
    call = RollCall(rank, size, store, {}, f"{host}:{port}")
    store.set(f"here/{rank}", socket.gethostname())
    if rank == 0:
        call.hosts = _wait_for_all(store, size, deadline=start + timeout)
        call.seconds, call.notice = time.monotonic() - start, notice
        names = {str(other): name for other, name in call.hosts.items()}
        store.set("go", json.dumps({"hosts": names, "notice": notice, "time": time.time()}))
        return call
    try:
        store.wait(["go"], timedelta(seconds=timeout + 10))
        now = time.time()
        go = json.loads(store.get("go"))
    except RuntimeError as error:
        raise TrainingError(
            f"rank {rank} of {size} on {socket.gethostname()} reached {call.address}, but rank 0 did not answer within "
            f"{timeout:g} s: look at what rank 0 printed"
        ) from error
    call.hosts = {int(other): name for other, name in go["hosts"].items()}
    if rank in call.missing:
        raise TrainingError(
            f"rank {rank} of {size} on {socket.gethostname()} came to {call.address} after rank 0 had waited for "
            f"{timeout:g} s: give it more time (--timeout), or see why this node is slow to start"
        )
    call.notice, call.clock_offset = go["notice"], now - go["time"]
    return call


def _open_store(host: str, port: int, *, rank: int, size: int, timeout: float) -> Any:
    # torchrun's agent holds the store itself; otherwise rank 0 does
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = rank == 0 and not has_agent
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, size, is_master, timedelta(seconds=timeout), wait_for_workers=False
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        here = socket.gethostname()
        way_out = (
            f"is {host} the host of rank 0, which is {here}, and is the port free? Export MASTER_ADDR and another "
            "MASTER_PORT (slurm/env.sh makes it of the job's id)"
            if is_master
            else f"was rank 0 started, is {host} its host, and may {here} connect to it (firewall, other network)?"
        )
        raise TrainingError(
            f"rank {rank} of {size} on {here} cannot {'listen' if is_master else 'connect'} at {host}:{port}: "
            f"{reason}; {way_out}"
        ) from error
    return dist.PrefixStore(f"doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _wait_for_all(store: Any, size: int, *, deadline: float) -> dict[int, str]:
    found: dict[int, str] = {}
    while True:
        for rank in [rank for rank in range(size) if rank not in found]:
            if store.check([f"here/{rank}"]):
                found[rank] = store.get(f"here/{rank}").decode()
        if len(found) == size or time.monotonic() > deadline:
            return dict(sorted(found.items()))
        time.sleep(POLL)
