"""One stage in a process of its own: locked, logged, and marked when it is done.

Whoever holds the lock of FOLDER.lock runs the stage; the kernel lets go of it when the process ends, however it ends.
So any number of workers, on any number of machines that share the folder, can look for work without a word, and what
was killed with `kill -9` is run again: the commands themselves go on from where they were.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptmeup.config import dump
from promptmeup.errors import StudyError, UserError
from promptmeup.shard_format import write_json
from promptmeup.study.commands import FUNCTIONS
from promptmeup.study.plan import Stage
from promptmeup.tracking.signal_watch import STOP_SIGNALS

BUSY = 75
"""exit code: another worker runs the stage"""


def run_stage(stage: Stage, *, gpus: str | None = None) -> int:
    """Run `stage` if nobody does, in the process that this call is made in; return an exit code.

    Output goes to FOLDER.log. 0: it is done; `BUSY`; 85 and 86: stopped after saving (see `training.signals`); else it
    failed, and FOLDER.failed.json says how.

    Args:
        gpus: numbers of the GPUs that it may see, as in CUDA_VISIBLE_DEVICES; None: all.
    """
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(stage.beside("lock")) as lock:
        if lock is None:
            return BUSY
        if stage.done.exists():
            return 0
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        began = time.time()
        code = _logged(stage, lock)
        if code == 0:
            stage.beside("failed.json").unlink(missing_ok=True)
            write_json(
                stage.done,
                {"stage": stage.name, "command": stage.command, "seconds": round(time.time() - began, 2)},
            )
        elif code not in (85, 86) and code > 0:
            write_json(stage.beside("failed.json"), {"stage": stage.name, "exit_code": code})
    return code


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Hold the lock, or yield None where another process has it."""
    number = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield number
    finally:
        os.close(number)


def _logged(stage: Stage, lock: int) -> int:
    log = os.open(stage.beside("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    configuration = stage.beside("yaml")
    configuration.write_text(dump(stage.config), encoding="utf-8")
    try:
        for name, source in stage.links.items():
            link_folder(source, stage.folder / name)
        if stage.ranks > 1:
            return _on_ranks(stage, configuration, lock)
        FUNCTIONS[stage.command](stage.config)  # type: ignore[index]
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except UserError as error:
        print(f"{stage.command}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _on_ranks(stage: Stage, configuration: Path, lock: int) -> int:
    """Run a pre-training on several processes of this machine."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={stage.ranks}"]
    words += ["-m", "promptmeup.study.rank", str(configuration)]
    # the ranks hold the lock, too: where this process is killed alone, nobody may take their place
    started = subprocess.Popen(words, pass_fds=(lock,))
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _: started.send_signal(received))
    return started.wait()


def link_folder(source: Path, target: Path) -> None:
    """Make `target` a folder of hard links to all files below `source`; nothing where it is there.

    Commands replace files and never write into them, so the source stays as it is.

    Raises:
        StudyError: the file system has no hard links, or the two lie on different ones.
    """
    if target.exists():
        return
    making = target.with_name(f"{target.name}.linking")
    try:
        for folder, _, files in os.walk(source):
            place = making / Path(folder).relative_to(source)
            place.mkdir(parents=True, exist_ok=True)
            for name in files:
                (place / name).unlink(missing_ok=True)
                os.link(Path(folder) / name, place / name)
        making.rename(target)
    except OSError as error:
        raise StudyError(
            f"cannot make hard links of {source} in {target}: {error}; put the study's store on a file system that has "
            "them"
        ) from error
