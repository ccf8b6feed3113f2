"""Megatron-Energon: plain tars with an index beside them; every worker of every rank has a state."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from promptmeup.data.reader import PackedSplit
from tests.benchmarks.peers.peer import Job, Keys, link_shards, require, sample_key

PACKAGE = "megatron-energon"
SHUFFLE = 100


def _encoder(energon: Any) -> Any:
    """Return the code that a user of energon has to write: how a sample becomes a batch's row."""

    @energon.edataclass
    class Keyed(energon.Sample):
        key: str

    @energon.stateless
    def cook(sample: dict[str, Any]) -> Any:
        return Keyed(**energon.basic_sample_keys(sample), key=sample_key(sample["jpg"], sample["json"]))

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None  # members as they are stored
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Any]) -> Keys:
            return [sample.key for sample in samples]

    return Encoder()


class _Loader:
    def __init__(self, job: Job) -> None:
        energon = require("megatron.energon", PACKAGE)
        dataset = energon.get_train_dataset(
            str(job.folder),
            worker_config=energon.WorkerConfig(rank=job.rank, world_size=job.size, num_workers=job.workers),
            batch_size=job.local_batch,
            shuffle_buffer_size=SHUFFLE,
            max_samples_per_sequence=SHUFFLE,
            task_encoder=_encoder(energon),
            repeat=False,
        )
        self._loader = energon.get_savable_loader(dataset, watchdog_timeout_seconds=None)
        if job.states:
            states = job.states if len(job.states) == job.size else _redistribute(job.states, job.size)
            self._loader.restore_state_rank(states[job.rank])

    def epoch(self) -> Iterator[Keys]:
        return iter(self._loader)

    def state(self) -> Any:
        return self._loader.save_state_rank()


def _redistribute(states: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Bring the ranks' states to another number of ranks by energon's own ``checkpoint redist``."""
    command = require("megatron.energon.tools.checkpoint", PACKAGE).command_redist
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [folder / f"rank{rank}.pt" for rank in range(len(states))]
        for state, file in zip(states, files, strict=True):
            torch.save(state, file)
        (folder / "new").mkdir()  # it does not make the folder itself
        arguments = [*map(str, files), str(folder / "new"), "--new-world-size", str(size)]
        with contextlib.redirect_stdout(io.StringIO()):
            command.main(arguments, standalone_mode=False)
        new = [folder / "new" / f"rank{rank}.pt" for rank in range(size)]
        return tuple(torch.load(file, weights_only=False) for file in new)


class Energon:
    name = "Megatron-Energon"
    module = "megatron.energon"
    package = PACKAGE
    reads_tars = True

    def write(self, split: PackedSplit, folder: Path, *, shard_bytes: int) -> None:
        prepare = require("megatron.energon.tools.prepare", PACKAGE).command
        link_shards(split, folder)
        options = "--non-interactive --no-progress --num-workers 1 --split-ratio 1,0,0"
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.main(
                [*options.split(), "--sample-type", "CrudeWebdataset", str(folder)], standalone_mode=False
            )

    @contextlib.contextmanager
    def open(self, job: Job) -> Iterator[_Loader]:
        yield _Loader(job)
