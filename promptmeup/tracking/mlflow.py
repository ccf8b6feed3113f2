"""MLflow as a sink that may fail: a background thread that copies the journal and never touches training.

The journal is the queue. The thread reads it from the byte up to which MLflow has it (a tag of the MLflow
run), so nothing is ever dropped or held in memory, a server that comes back gets what it missed, and a
line sent twice is the same row (same time, step and value) to MLflow. Steps that a resumed run repeats
are sent once. Training's own thread only writes the journal.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from promptmeup.tracking.mlflow_run import OpenRun, import_mlflow, open_run
from promptmeup.tracking.provenance import redact
from promptmeup.tracking.settings import RunFacts, TrackingConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_FAILURES = 3
_MAX_PAUSE_SECONDS = 300.0


class MlflowSink:
    """Copies `folder`/journal.jsonl to one MLflow run, the same one across restarts, until closed.

    Nothing here raises or blocks; making one imports MLflow (2 to 8 s, once a process). After three
    failures in a row it says so once, tries again ever less often (up to every five minutes), and says
    when it has caught up.

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
        self._artifacts: deque[Path] = deque(maxlen=1000)
        self._status: Status = "FINISHED"
        self._closing = threading.Event()
        self._complete = False
        with contextlib.suppress(Exception):  # the thread meets the same error and reports it
            import_mlflow(config.uri)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def add_artifact(self, path: Path) -> None:
        """Copy the file `path` to the run's artifacts at the next flush."""
        self._artifacts.append(path)

    def close(self, *, status: Status, timeout: float) -> bool:
        """Send what is left, set the run's status; return whether MLflow has everything.

        Returns after `timeout` seconds at the latest; the journal keeps what MLflow lacks.
        """
        self._status = status
        self._closing.set()
        self._thread.join(timeout)
        return self._complete

    def _work(self) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()  # before the flush: it covers all that was written till then
            try:
                self._flush(closing)
            except Exception as error:
                failures += 1
                self._run = None
                if failures == _MAX_FAILURES:
                    self._say(self._warning(error))
                if closing and failures >= _MAX_FAILURES:
                    return
            else:
                if failures >= _MAX_FAILURES:
                    self._say(f"MLflow at {self._uri} answers again and has every step")
                failures = 0
                if closing:
                    self._complete = True
                    return
            self._closing.wait(min(self._config.flush_seconds * 2**failures, _MAX_PAUSE_SECONDS))

    def _flush(self, closing: bool) -> None:
        run = self._run = self._run or open_run(self._folder, self._config, self._facts)
        run.send_lines(self._folder / "journal.jsonl")
        if closing:  # before the artifacts: a store that refuses files must not leave the run RUNNING
            run.client.set_terminated(run.id, status=self._status)
        while self._artifacts:
            path = self._artifacts[0]
            if path.exists():
                run.client.log_artifact(run.id, str(path))
            self._artifacts.popleft()

    def _warning(self, error: Exception) -> str:
        reason = redact(str(error).strip().partition("\n")[0])[:300]
        return (
            f"warning: MLflow at {self._uri} failed {_MAX_FAILURES} times "
            f"({type(error).__name__}: {reason}); training goes on, every value is in "
            f"{self._folder / 'journal.jsonl'}, and MLflow gets them when it answers again"
        )
