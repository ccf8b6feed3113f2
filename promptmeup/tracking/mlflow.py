"""MLflow as a sink that may fail: a background thread that copies the run folder and never touches training.

The journal is the queue. The thread reads it from the byte up to which MLflow has it (a tag of the MLflow
run), so nothing is ever dropped or held in memory, a server that comes back gets what it missed, and a
line sent twice is the same row (same time, step and value) to MLflow. Steps that a resumed run repeats
are sent once. Training's own thread only writes the journal.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from promptmeup.tracking.backlog import Backlog
from promptmeup.tracking.mlflow_run import OpenRun, import_mlflow, lock_run, open_run, reason_of
from promptmeup.tracking.provenance import redact
from promptmeup.tracking.settings import RunFacts, TrackingConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_FAILURES = 3
_MAX_PAUSE_SECONDS = 300.0


class _Breaker:
    """Counts failures in a row, and says how long to wait before the next try: ever longer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.failures = 0

    @property
    def pause(self) -> float:
        # limited: after 1024 failures the power of two is no float any more, and the thread died of it
        return min(self._seconds * 2.0 ** min(self.failures, 20), _MAX_PAUSE_SECONDS)


class MlflowSink:
    """Copies `folder`'s lines and files to one MLflow run, the same one across restarts, until closed.

    Nothing here raises or blocks; making one imports MLflow (2 to 8 s, once a process). After three
    failures in a row it says so once, tries again ever less often (up to every five minutes), and says
    when it has caught up. A store that takes metrics and refuses files holds nothing else up.

    Args:
        folder: the run folder; keeps the MLflow run's id in `mlflow_run_id`.
        say: prints one line for a person.
    """

    def __init__(
        self, folder: Path, *, config: TrackingConfig, facts: RunFacts, say: Callable[[str], None]
    ) -> None:
        assert config.uri is not None
        self._folder = folder
        self._uri = redact(config.uri)
        self._config = config
        self._facts = facts
        self._say = say
        self._run: OpenRun | None = None
        self._backlog: Backlog | None = None
        self._lines, self._files = _Breaker(config.flush_seconds), _Breaker(config.flush_seconds)
        self._files_due = 0.0
        self._status: Status = "FINISHED"
        self._wake = threading.Event()
        self._is_closing = False
        self._complete = False
        with contextlib.suppress(Exception):  # the thread meets the same error and reports it
            import_mlflow(config.uri)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Have the thread send what there is at once."""
        self._files_due = 0.0
        self._wake.set()

    def close(self, *, status: Status, timeout: float) -> bool:
        """Send what is left, set the run's status; return whether MLflow has everything.

        Returns after `timeout` seconds at the latest; the run folder keeps what MLflow lacks.
        """
        self._status = status
        self._is_closing = True
        self.flush()
        self._thread.join(timeout)
        return self._complete

    def _work(self) -> None:
        while True:
            self._wake.clear()
            closing = self._is_closing  # before the flush: it covers all that was written till then
            if self._send_lines(closing):
                has_files = self._send_files(closing)
                if closing and (has_files or self._files.failures >= _MAX_FAILURES):
                    self._complete = has_files
                    return
            elif closing and self._lines.failures >= _MAX_FAILURES:
                return
            self._wake.wait(self._lines.pause)

    def _send_lines(self, closing: bool) -> bool:
        """Return whether MLflow has every line, and, when `closing`, the status."""
        breaker = self._lines
        try:
            run = self._run or self._open()
            run.send_lines()
            if closing:  # before the files: a store that refuses them must not leave the run RUNNING
                run.end(self._status)
            elif run.backlog.ending == "KILLED" and run.status == "RUNNING":
                # a signal: the launcher may kill us before this run's next step is through
                run.end("KILLED")
        except Exception as error:
            self._run = None
            breaker.failures += 1
            if breaker.failures == _MAX_FAILURES:
                self._say(
                    f"{self._failed(error)}; training goes on, every value is in "
                    f"{self._folder / 'journal.jsonl'}, and MLflow gets them when it answers again"
                )
            return False
        if breaker.failures >= _MAX_FAILURES:
            self._say(f"MLflow at {self._uri} answers again and has every step")
        breaker.failures = 0
        return True

    def _open(self) -> OpenRun:
        with lock_run(self._folder):
            self._run = open_run(self._folder, self._config, self._facts, backlog=self._backlog)
        self._backlog = self._run.backlog
        self._files_due = 0.0
        return self._run

    def _send_files(self, closing: bool) -> bool:
        """Return whether MLflow has every file, as far as that is known: they are looked at rarely."""
        breaker = self._files
        if time.monotonic() < self._files_due and not closing:
            return not breaker.failures
        assert self._run is not None
        try:
            self._run.send_files()
        except Exception as error:
            breaker.failures += 1
            self._files_due = time.monotonic() + breaker.pause
            if breaker.failures == _MAX_FAILURES:
                self._say(
                    f"{self._failed(error)} to take files; metrics go on, files follow when it takes them"
                )
            return False
        breaker.failures = 0
        self._files_due = time.monotonic() + _MAX_PAUSE_SECONDS
        return True

    def _failed(self, error: Exception) -> str:
        return f"warning: MLflow at {self._uri} failed {_MAX_FAILURES} times ({reason_of(error)})"
