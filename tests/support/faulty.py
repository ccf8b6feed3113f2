"""`launch/pretrain.py` with a fault: FAULT is `KIND:RANK:STEP`, where KIND is raise, memory, kill, hang, nan or full.

nan: the loss of that step and, with a fourth part, of so many in all. full: from that step on no file may be larger
than 20 kB, for as many steps as the fourth part says.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from promptmeup.config import command
from promptmeup.errors import NotFiniteError
from promptmeup.training import pretrain
from promptmeup.training.settings import PretrainConfig

KIND, _, REST = os.environ.get("FAULT", "none:0:0").partition(":")
RANK, STEP, *LENGTH = (int(part) for part in REST.split(":"))


def _patched(original: Any) -> Any:
    def step(engine: Any, batch: Any, **named: Any) -> Any:
        number = step.calls = step.calls + 1  # type: ignore[attr-defined]
        is_due = torch.distributed.get_rank() == RANK and number == STEP
        if KIND == "full":
            soft, hard = (
                (20_000 if STEP <= number < STEP + LENGTH[0] else resource.RLIM_INFINITY),
                resource.RLIM_INFINITY,
            )
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        elif KIND == "nan" and STEP <= number < STEP + (LENGTH[0] if LENGTH else 1):
            # all ranks, as when a loss of the world is not finite
            raise NotFiniteError(f"loss/total = nan: images: {batch.keys[0]}")
        elif is_due and KIND == "raise":
            raise RuntimeError("the fault of this test")
        elif is_due and KIND == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        elif is_due and KIND == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif is_due and KIND == "hang":
            time.sleep(10_000)
        return original(engine, batch, **named)

    step.calls = 0  # type: ignore[attr-defined]
    return step


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    pretrain.train_step = _patched(pretrain.train_step)
    command(PretrainConfig, pretrain.pretrain)
