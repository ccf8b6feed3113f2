"""One stage in a process of its own: locked, logged, and marked when it is done.

Whoever holds the lock of FOLDER.lock runs the stage; the kernel lets go of it when the process ends, however it ends.
So any number of workers, on any number of machines that share the folder, can look for work without a word, and what
was killed with `kill -9` is run again: the commands themselves go on from where they were.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from promptmeup.config import dump
from promptmeup.errors import StudyError, UserError
from promptmeup.shard_format import write_json
from promptmeup.study.commands import function
from promptmeup.study.plan import Stage
from promptmeup.study.sources import content_of
from promptmeup.tracking.provenance import code_version
from promptmeup.tracking.signal_watch import STOP_SIGNALS
from promptmeup.training.signals import NO_PROGRESS_EXIT_CODE, SAVED_EXIT_CODE, STOP_FILE

BUSY = 75
"""exit code: another worker runs the stage, or has run it meanwhile"""
HELD = 87
"""exit code: somebody stopped it by hand, with a file that keeps it from starting; other stages go on"""
STOPPED = (SAVED_EXIT_CODE, NO_PROGRESS_EXIT_CODE)
"""exit codes: it was told to stop, and goes on another time"""

_LAST_WORDS = 60.0
"""seconds that the other ranks have to end when one has failed"""


def run_stage(stage: Stage, *, title: str, gpus: str | None = None) -> int:
    """Run `stage` if nobody does, in the process that this call is made in; return an exit code.

    Output goes to FOLDER.log. 0: it is done; `BUSY`; `STOPPED`; else it failed, or is `HELD`, and FOLDER.failed.json
    says how.

    Args:
        title: whose stage it is, for people.
        gpus: numbers of the GPUs that it may see, as in CUDA_VISIBLE_DEVICES; None: as they are.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see Worker
    with _locked(stage.beside("lock")) as lock:
        if lock is None or _is_done(stage):
            return BUSY
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        print(f"{stage.name} begins: {title}; log: {stage.beside('log')}", flush=True)
        began = time.time()
        code = _logged(stage, title, lock)
        seconds = _earlier_seconds(stage) + time.time() - began
        if code == 0:
            write_json(
                stage.done,
                {
                    "stage": stage.name,
                    "command": stage.command,
                    "seconds": round(seconds, 2),
                    "ended": round(time.time(), 3),
                    "code": code_version(),
                },
            )
            # after the other: until then it says how the last try ended
            stage.beside("failed.json").unlink(missing_ok=True)
            stage.beside("seconds.json").unlink(missing_ok=True)
            # last: a training that is killed ahead of the mark goes on from them
            _drop_checkpoints(stage.folder)
            return code
        write_json(stage.beside("seconds.json"), round(seconds, 2))
        if code not in STOPPED:
            write_json(stage.beside("failed.json"), {"stage": stage.name, "exit_code": code})
    return code


def _is_done(stage: Stage) -> bool:
    """Return whether another worker has run it, whatever this machine remembers of a network folder.

    NFS keeps for some seconds that a file was not there; a change of one's own in the folder has it ask again, where
    others changed it, too. Under the lock: no two make the same file.
    """
    look = stage.beside("look.tmp")
    look.touch()
    look.unlink()
    return stage.done.exists()


def _earlier_seconds(stage: Stage) -> float:
    """Return how long earlier starts took that did not finish it; one that was killed could not say."""
    try:
        return float(json.loads(stage.beside("seconds.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0.0


def _drop_checkpoints(folder: Path) -> None:
    """Remove what only serves to go on with a run: in a finished stage two thirds of the space, and nobody's need."""
    for checkpoints in [*folder.glob("checkpoints"), *folder.glob("*/checkpoints")]:
        shutil.rmtree(checkpoints, ignore_errors=True)


def is_busy(stage: Stage) -> bool:
    """Return whether another worker runs the stage, or has run it: cheaper than a process that finds out."""
    with _locked(stage.beside("lock")) as lock:
        return lock is None or stage.done.exists()


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Hold the lock, or yield None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            raise StudyError(
                f"cannot lock {path}: {error.strerror}; put the study's store on a file system that has locks"
            ) from error
        yield number
    finally:
        os.close(number)


def _logged(stage: Stage, title: str, lock: int) -> int:
    log = os.open(stage.beside("log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # line by line, so that the last words of what is killed are there
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    print(f"--- {time.strftime('%F %T')} {socket.gethostname()} {os.getpid()}: {title}", flush=True)
    try:
        return _refuse_stop(stage) or _whole(stage, lock)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _refuse_stop(stage: Stage) -> int:
    """Return `HELD` where a file of the stage's folder keeps it from starting: a training would end as if done."""
    if not (stop := stage.folder / STOP_FILE).exists():
        return 0
    print(f"{stop} is there; remove it to go on", file=sys.stderr)
    return HELD


def _whole(stage: Stage, lock: int) -> int:
    """Run the command, and see that nothing interfered: a STOP file, or an edit of what it read."""
    try:
        _refuse_changes(stage)
        if (code := _commanded(stage, lock)) != 0:
            return code
        if (code := _refuse_stop(stage)) != 0:
            return code
        try:
            _refuse_changes(stage)
        except StudyError:
            _set_aside(stage.folder)
            raise
    except UserError as error:
        print(f"{stage.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _commanded(stage: Stage, lock: int) -> int:
    configuration = stage.beside("yaml")
    configuration.write_text(dump(stage.config), encoding="utf-8")
    for name, source in stage.links.items():
        link_folder(source, stage.folder / name)
    if stage.ranks > 1:
        return _on_ranks(stage.ranks, configuration, lock)
    try:
        function(stage.command)(stage.config)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return (ended.code or 0) & 0xFF
        print(ended.code, file=sys.stderr)
        return 1
    return 0


def _set_aside(folder: Path) -> None:
    """Move what was made of two contents, or it would be gone on with once the file is as it was."""
    aside = folder.with_name(f"{folder.name}.stale")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _refuse_changes(stage: Stage) -> None:
    """Refuse what is no longer as it was planned: the result would lie under the name of another content.

    Raises:
        StudyError: a file or a folder that the stage reads was changed.
    """
    changed = [str(path) for path, content in stage.sources.items() if content_of(path) != content]
    if changed:
        raise StudyError(f"{', '.join(changed)} changed while the study ran; the same command plans anew")


def _on_ranks(ranks: int, configuration: Path, lock: int) -> int:
    """Run a pre-training on several processes of this machine; return rank 0's code, or the first of a failure.

    No launcher of others does it: torchrun dies of USR2, and closes the lock in its ranks.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    place |= {"LOCAL_WORLD_SIZE": str(ranks)}
    if "OMP_NUM_THREADS" not in os.environ:
        place["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // ranks))
    words = [sys.executable, "-m", "promptmeup.study.rank", str(configuration)]
    signal.pthread_sigmask(
        signal.SIG_BLOCK, STOP_SIGNALS
    )  # nobody is told while they start; rank.py unblocks
    started = [
        # the ranks hold the lock, too: where this process is killed alone, nobody may take their place
        subprocess.Popen(
            words, pass_fds=(lock,), env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(ranks)
    ]

    def tell(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for one in started:
            one.send_signal(signal.SIGTERM)

    for number in STOP_SIGNALS:
        signal.signal(number, tell)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    failed_at = None
    while any(one.poll() is None for one in started):
        if failed_at is None and any(one.returncode for one in started):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _LAST_WORDS:
            for one in started:
                one.kill()
        time.sleep(0.1)
    codes = [one.returncode if one.returncode >= 0 else 128 - one.returncode for one in started]
    return next((code for code in codes if code), 0)


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
