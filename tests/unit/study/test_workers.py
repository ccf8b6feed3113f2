"""Workers on stages that do whatever a test wants: shared, failed, signalled, killed."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptmeup.errors import CorpusError, StudyError
from promptmeup.study import job, workers
from promptmeup.study.box_errors import BoxErrorsConfig
from promptmeup.study.job import BUSY, HELD, run_stage
from promptmeup.study.plan import Stage
from promptmeup.study.sources import content_of
from promptmeup.study.workers import Worker, run_all, seconds_of
from promptmeup.training.signals import StopFlag
from tests.support.study_chain import RUNS, runs

Behave = Callable[[Callable[[str], None]], None]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PAUSE", 0.05)


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Behave:
    """Return what sets what every stage does, given its name."""

    def use(body: Callable[[str], None]) -> None:
        monkeypatch.setattr(job, "function", lambda _: lambda config: body(config.out.parent.name))

    return use


def stage(folder: Path, name: str, *needs: Stage) -> Stage:
    own = folder / "store" / name
    return Stage(
        name=name,
        command="make_box_errors",
        folder=own,
        config=BoxErrorsConfig(source=folder / "source", out=own / "out"),
        links={},
        needs=tuple(need.folder for need in needs),
        ranks=1,
        seconds=3.0,
    )


def work(stages: Sequence[Stage], *, processes: int = 1) -> int:
    return run_all(
        stages, title=lambda stage: f"title of {stage.name}", done=lambda: None, gpus=[None] * processes
    )


def in_process(stages: Sequence[Stage], *, processes: int = 1) -> multiprocessing.process.BaseProcess:
    """Start workers in a process group of their own."""

    def body() -> None:
        os.setsid()
        os._exit(work(stages, processes=processes))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def failure(stage: Stage) -> Any:
    return json.loads(stage.beside("failed.json").read_text())


def test_order_marks_and_words(behave: Behave, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    behave(lambda name: print(f"this is {name}"))
    a = stage(tmp_path, "a")
    b = stage(tmp_path, "b", a)
    assert work([a, b]) == 0
    for one in (a, b):
        assert f"this is {one.name}" in one.beside("log").read_text()
        assert json.loads(one.done.read_text())["stage"] == one.name
    shown = capfd.readouterr().out.splitlines()
    assert shown == [
        f"a begins: title of a; log: {a.beside('log')}",
        "[1/2] a done in 0:00: title of a",
        f"b begins: title of b; log: {b.beside('log')}",
        "[2/2] b done in 0:00: title of b",
    ]
    assert work([a, b]) == 0
    assert (runs(a), runs(b)) == (1, 1)
    assert capfd.readouterr().out == ""


def test_a_failure_stops_what_needs_it_alone(behave: Behave, tmp_path: Path) -> None:
    def body(name: str) -> None:
        if name == "a" and not (tmp_path / "mended").exists():
            raise CorpusError("no such corpus")

    behave(body)
    a, c = stage(tmp_path, "a"), stage(tmp_path, "c")
    b = stage(tmp_path, "b", a)
    d = stage(tmp_path, "d", b, c)
    assert work([a, b, c, d]) == 1
    assert c.done.exists()
    assert [runs(one) for one in (a, b, c, d)] == [1, 0, 1, 0]
    assert failure(a) == {"stage": "a", "exit_code": 1}
    assert "make_box_errors: no such corpus" in a.beside("log").read_text()
    assert work([a, b, c, d]) == 1, "it is tried again"
    (tmp_path / "mended").touch()
    assert work([a, b, c, d]) == 0
    assert [runs(one) for one in (a, b, c, d)] == [3, 1, 1, 1]
    assert not a.beside("failed.json").exists()


def test_an_earlier_failure_that_is_gone_is_no_new_one(behave: Behave, tmp_path: Path) -> None:
    """Somebody cleared it away while this command was on its way to the stage."""
    a = stage(tmp_path, "a")
    a.folder.parent.mkdir()
    a.beside("failed.json").touch()
    behave(lambda _: None)
    worker = Worker([a], title=lambda _: "a", done=lambda: None)
    a.beside("failed.json").unlink()
    assert worker.run() == 0 and a.done.exists()


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_without_a_word() -> None:
    os._exit(3)


def end_with_words() -> None:
    sys.exit("told why")


def raise_an_error() -> None:
    raise ValueError("our own mistake")


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (kill_oneself, -signal.SIGKILL, ""),
        (end_without_a_word, 3, ""),
        (end_with_words, 1, "told why"),
        (raise_an_error, 1, "ValueError: our own mistake"),
    ],
)
def test_whatever_ends_a_stage_is_a_failure_once(
    behave: Behave, tmp_path: Path, how: Callable[[], None], code: int, said: str
) -> None:
    behave(lambda _: how())
    a = stage(tmp_path, "a")
    assert work([a]) == 1
    assert failure(a) == {"stage": "a", "exit_code": code}
    assert runs(a) == 1
    assert said in a.beside("log").read_text()


def test_a_store_without_locks(behave: Behave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StudyError, match="put the study's store on a file system that has locks"):
        work([stage(tmp_path, "a")])


@pytest.mark.parametrize("commands", [1, 2])
def test_several_workers_share_the_work(behave: Behave, tmp_path: Path, commands: int) -> None:
    """Each stage is run once, and at least two at a time, by workers of one command or of two."""

    def body(name: str) -> None:
        (tmp_path / f"{name}.on").touch()
        if name.startswith("a"):
            until(lambda: len(list(tmp_path.glob("a*.on"))) >= 2)
        time.sleep(0.05)

    behave(body)
    first = [stage(tmp_path, f"a{number}") for number in range(4)]
    last = [stage(tmp_path, f"b{number}", *first[number : number + 2]) for number in range(3)]
    processes = [in_process([*first, *last], processes=2 // commands) for _ in range(commands)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * commands
    assert [runs(one) for one in (*first, *last)] == [1] * 7


def test_a_stage_that_another_worker_runs(behave: Behave, tmp_path: Path) -> None:
    """Its process does nothing, whether the other one is at it or done with it."""
    behave(lambda _: None)
    a = stage(tmp_path, "a")
    a.folder.parent.mkdir()
    with a.beside("lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        process = multiprocessing.get_context("fork").Process(
            target=lambda: os._exit(run_stage(a, title="a"))
        )
        process.start()
        process.join()
        assert process.exitcode == BUSY
    assert runs(a) == 0


def test_a_stage_that_was_done_elsewhere_a_moment_ago(
    behave: Behave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS remembers that a file was not there until this machine changes its folder (a model of it, not NFS)."""
    behave(lambda _: None)
    a = stage(tmp_path, "a")
    a.folder.parent.mkdir()
    a.beside("lock").touch()
    a.done.touch()
    os.utime(a.folder.parent, (1, 1))
    exists = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda path: exists(path) and (path != a.done or path.parent.stat().st_mtime > 1)
    )
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(run_stage(a, title="a")))
    process.start()
    process.join()
    assert process.exitcode == BUSY and runs(a) == 0
    assert not a.beside("look.tmp").exists()


def stop_as_training_does(folder: Path) -> Callable[[str], None]:
    """Return a stage that notes what it is told and "saves"; a second Ctrl-C would raise KeyboardInterrupt."""

    def body(name: str) -> None:
        if (folder / f"{name}.saved").exists():
            return
        flag = StopFlag()
        (folder / f"{name}.on").touch()
        until(lambda: flag)
        time.sleep(0.2)
        (folder / f"{name}.saved").write_text(str(flag.received))
        sys.exit(85)

    return body


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("group", [False, True])
def test_stop_signals(behave: Behave, tmp_path: Path, processes: int, number: int, group: bool) -> None:
    """To the command alone, or to all of its processes at once as a terminal and Slurm send them."""
    behave(stop_as_training_does(tmp_path))
    stages = [stage(tmp_path, name) for name in ("a", "b", "c")]
    process = in_process(stages, processes=processes)
    until(lambda: len(list(tmp_path.glob("*.on"))) == processes)
    assert process.pid is not None
    (os.killpg if group else os.kill)(process.pid, number)
    process.join()
    assert process.exitcode == 85
    assert len(list(tmp_path.glob("*.saved"))) == processes
    assert not list((tmp_path / "store").glob("*.failed.json"))
    assert not list((tmp_path / "store").glob("*.done.json"))
    for one in stages:
        (tmp_path / f"{one.name}.saved").touch()
    assert work(stages) == 0
    assert [runs(one) for one in stages] == [2, 1 if processes == 1 else 2, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_at_any_moment(behave: Behave, tmp_path: Path, processes: int) -> None:
    """Also one that comes while a process starts ends the command, and is no failure."""
    behave(lambda _: time.sleep(0.01))
    stages = [stage(tmp_path, f"s{number}") for number in range(300)]
    for number in range(25):
        process = in_process(stages, processes=processes)
        assert process.pid is not None
        until(lambda: os.getpgid(process.pid) == process.pid)  # noqa: B023
        time.sleep(0.01 + number * 0.003)
        os.kill(process.pid, signal.SIGTERM)
        process.join(10)
        assert process.exitcode in (85, -signal.SIGTERM), "the latter before the workers begin"
        assert not list((tmp_path / "store").glob("*.failed.json"))


def test_a_stage_that_is_told_to_stop_stops_its_worker(behave: Behave, tmp_path: Path) -> None:
    behave(lambda _: sys.exit(86))
    a = stage(tmp_path, "a")
    assert work([a, stage(tmp_path, "b")]) == 85
    assert runs(a) == 1 and not a.beside("failed.json").exists()


def test_a_killed_workers_stage_goes_on_and_keeps_its_lock(behave: Behave, tmp_path: Path) -> None:
    def body(name: str) -> None:
        (tmp_path / "on").touch()
        until(lambda: (tmp_path / "go").exists())
        print("to the end")

    behave(body)
    a = stage(tmp_path, "a")
    process = in_process([a])
    until(lambda: (tmp_path / "on").exists())
    process.kill()
    process.join()
    other = in_process([a])
    time.sleep(0.3)
    assert other.is_alive() and not a.done.exists(), "it waits"
    (tmp_path / "go").touch()
    other.join(20)
    assert other.exitcode == 0
    assert a.beside("log").read_text().count("to the end") == runs(a) == 1


def test_workers_of_a_killed_command_begin_nothing_more(behave: Behave, tmp_path: Path) -> None:
    def body(name: str) -> None:
        (tmp_path / f"{name}.on").touch()
        until(lambda: (tmp_path / "go").exists())

    behave(body)
    stages = [stage(tmp_path, name) for name in ("a", "b", "c")]
    process = in_process(stages, processes=2)
    until(lambda: len(list(tmp_path.glob("*.on"))) == 2)
    assert process.pid is not None
    left = children(process.pid)
    process.kill()
    process.join()
    (tmp_path / "go").touch()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
    assert [one.done.exists() for one in stages] == [True, True, False]
    assert work(stages) == 0
    assert [runs(one) for one in stages] == [1, 1, 1]


def test_a_killed_worker_is_told_of(behave: Behave, tmp_path: Path) -> None:
    """The others go on; the command does not claim that all is done while the stage of the dead one is not."""

    def body(name: str) -> None:
        (tmp_path / f"{name}.on").touch()
        until(lambda: (tmp_path / "go").exists())

    behave(body)
    stages = [stage(tmp_path, name) for name in ("a", "b")]
    process = in_process(stages, processes=2)
    until(lambda: len(list(tmp_path.glob("*.on"))) == 2)
    assert process.pid is not None
    os.kill(children(process.pid)[0], signal.SIGKILL)
    (tmp_path / "go").touch()
    process.join(20)
    assert process.exitcode == 1
    assert work(stages) == 0


def test_a_stage_of_a_gpu_starts_afresh(tmp_path: Path) -> None:
    """A fork of what has asked CUDA for its devices cannot use it."""
    a = stage(tmp_path, "a")
    (tmp_path / "source").write_text('{"image_path": "a.jpg", "boxes": []}\n')
    assert Worker([a], title=lambda _: "a", done=lambda: None, gpus="").run() == 0
    assert (a.folder / "out").read_text() == '{"boxes": [], "image_path": "a.jpg"}\n'
    assert RUNS in a.beside("log").read_text()


def test_what_is_stopped_by_hand_is_not_finished_and_others_go_on(tmp_path: Path, behave: Behave) -> None:
    """A training that finds the file, or is ended by it, ends as if it were done."""

    def body(name: str) -> None:
        if name == "a":
            (tmp_path / "store/a/STOP").touch()

    behave(body)
    a, b = stage(tmp_path, "a"), stage(tmp_path, "b")
    c = stage(tmp_path, "c", a)
    a.folder.mkdir(parents=True)
    for _ in range(2):
        assert work([a, c, b]) == 1
        assert not a.done.exists() and failure(a) == {"stage": "a", "exit_code": HELD}
        assert a.beside("log").read_text().endswith(f"{a.folder}/STOP is there; remove it to go on\n")
        assert b.done.exists() and runs(c) == 0
    (a.folder / "STOP").unlink()
    behave(lambda name: None)
    assert work([a, c, b]) == 0 and c.done.exists()
    assert not a.beside("failed.json").exists()


def test_checkpoints_are_there_until_the_stage_is_done(
    behave: Behave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, a training would begin from nothing."""
    a = stage(tmp_path, "a")
    (a.folder / "checkpoints").mkdir(parents=True)
    write = job.write_json

    def killed(path: Path, value: Any) -> None:
        if path == a.done:
            os._exit(9)
        write(path, value)

    behave(lambda _: None)
    with monkeypatch.context() as patched:
        patched.setattr(job, "write_json", killed)
        assert work([a]) == 1
    assert (a.folder / "checkpoints").exists()
    assert work([a]) == 0
    assert not (a.folder / "checkpoints").exists()


def test_seconds_are_those_of_all_starts(behave: Behave, tmp_path: Path) -> None:
    def body(name: str) -> None:
        time.sleep(0.2)
        if not (tmp_path / "last").exists():
            sys.exit(85)

    behave(body)
    a = stage(tmp_path, "a")
    assert work([a]) == work([a]) == 85
    (tmp_path / "last").touch()
    assert work([a]) == 0
    assert json.loads(a.done.read_text())["seconds"] >= 0.6
    assert not a.beside("seconds.json").exists()
    a.done.unlink()
    assert work([a]) == 0
    assert 0.2 <= json.loads(a.done.read_text())["seconds"] < 0.6, "it was begun anew"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_source_that_changes_while_the_study_runs(behave: Behave, tmp_path: Path, when: str) -> None:
    """Its result would lie under the name of what was there at first."""
    file, folder = tmp_path / "template.txt", tmp_path / "tweets"
    folder.mkdir()
    (folder / "train.txt").write_text("one")
    file.write_text("one")
    sources = {path: content_of(path) for path in (file, folder)}
    a = replace(stage(tmp_path, "a"), sources=sources)
    a.folder.mkdir(parents=True)

    def body(name: str) -> None:
        (a.folder / "made").touch()
        file.write_text("two")

    behave(body)
    if when == "before":
        (folder / "train.txt").write_text("two")
    assert work([a]) == 1
    said = (
        f"{file if when == 'meanwhile' else folder} changed while the study ran; the same command plans anew"
    )
    assert said in a.beside("log").read_text()
    assert not a.done.exists() and not (a.folder / "made").exists()
    assert (a.beside("stale") / "made").exists() is (when == "meanwhile")
    file.write_text("one")
    (folder / "train.txt").write_text("one")
    behave(lambda _: None)
    assert work([a]) == 0


def test_seconds_are_those_of_the_same_kind(tmp_path: Path) -> None:
    a, b = stage(tmp_path, "a"), stage(tmp_path, "b")
    store = tmp_path / "store"
    assert seconds_of([a], store=store) == {a.folder: 3.0}
    store.mkdir()
    for number, seconds in enumerate((5, 7, 100)):
        text = json.dumps({"stage": "a", "command": "make_box_errors", "seconds": seconds})
        (store / f"x{number}.done.json").write_text(text)
    assert seconds_of([a, b], store=store) == {a.folder: 7.0, b.folder: 3.0}
