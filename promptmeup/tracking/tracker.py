"""One object through which a run reports: the journal first, then the console, MLflow behind."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from promptmeup.config import Config
from promptmeup.tracking import curves
from promptmeup.tracking.console import Console, table
from promptmeup.tracking.journal import Journal
from promptmeup.tracking.mlflow import MlflowSink, Status
from promptmeup.tracking.provenance import write_run_folder
from promptmeup.tracking.settings import RunFacts, TrackedDataset, TrackingConfig, flatten


class Tracker:
    """Reports of one run, made on rank 0 alone; the other ranks take `Tracker.off()`.

    Used as a context: an exception inside ends the run as FAILED (KILLED for Ctrl-C), leaving it as
    FINISHED, so that MLflow never shows a run as RUNNING that is not. Names with a meaning for people:
    "loss", "loss/<term>", "lr", "pairs_per_second", "data_wait" (0 to 1); others are shown as they are.

    Args:
        folder: the run folder; gets journal.jsonl, config.yaml, environment.json, curves.png and
            mlflow_run_id. None: nothing is written or printed.
        config: where metrics go and how often.
        total_steps: steps of the whole run, for the time left.
    """

    def __init__(
        self, folder: Path | None, *, config: TrackingConfig | None = None, total_steps: int = 0
    ) -> None:
        self._folder = folder
        self._config = config = config or TrackingConfig()
        self._console = Console(total_steps=total_steps, every_seconds=config.console_seconds)
        self._journal: Journal | None = None
        self._sink: MlflowSink | None = None
        self._step = 0

    @classmethod
    def off(cls) -> Self:
        """Return a tracker that does nothing."""
        return cls(None)

    def start(
        self,
        *,
        config: Config,
        environment: dict[str, Any],
        step: int = 0,
        datasets: Sequence[TrackedDataset] = (),
        parent_run_id: str | None = None,
    ) -> None:
        """Begin, or go on after `step` steps when the folder has a journal already.

        Args:
            config: the command's resolved configuration.
            environment: of `provenance.environment`.
            step: optimizer steps that the resumed checkpoint holds.
            datasets: packed splits that the run reads.
            parent_run_id: MLflow run of the pre-training, for a fine-tuning run.

        Raises:
            OSError: the run folder cannot be written; after this, nothing here raises.
        """
        if self._folder is None:
            return
        files = write_run_folder(self._folder, config=config, environment=environment)
        path = self._folder / "journal.jsonl"
        resumed = step > 0 or (path.exists() and path.stat().st_size > 0)
        self._journal = Journal(path)
        self._step = step
        self._journal.write("resume" if resumed else "start", step=step, environment=environment)
        self._console.start(step)
        if self._config.uri is not None:
            facts = RunFacts(
                params=flatten(config.model_dump(mode="json")),
                tags=_tags(environment, self._folder),
                datasets=datasets,
                parent_run_id=parent_run_id,
            )
            self._sink = MlflowSink(self._folder, config=self._config, facts=facts, say=self._console.line)
            for file in files:
                self._sink.add_artifact(file)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report training metrics after `step` steps; call it every `log_every` steps."""
        if self._journal is None:
            return
        self._step = step
        numbers = {name: float(value) for name, value in metrics.items()}
        self._journal.write("step", step=step, **numbers)
        self._console.step(step, numbers)

    def evaluation(
        self, step: int, metrics: Mapping[str, float], *, shown: Sequence[str] | None = None
    ) -> None:
        """Report the metrics of one evaluation, printed as a table: those named in `shown`, or all."""
        if self._journal is None:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        self._journal.write("evaluation", step=step, **numbers)
        row = numbers if shown is None else {name: numbers[name] for name in shown if name in numbers}
        self._console.line(f"evaluation after {step} steps\n{table([row])}")

    def labels(self, step: int, statistics: Mapping[str, float]) -> None:
        """Report what is known of the soft labels that the run trains on, as metrics named labels/NAME."""
        if self._journal is None:
            return
        numbers = {f"labels/{name}": float(value) for name, value in statistics.items()}
        self._journal.write("labels", step=step, **numbers)

    def event(self, name: str, step: int, **facts: Any) -> None:
        """Report something that happened, such as "checkpoint", "stop" or "warning", with its facts."""
        if self._journal is None:
            return
        self._journal.write(name, step=step, **facts)
        shown = "  ".join(f"{key}={value}" for key, value in facts.items())
        self._console.line(f"{name} after {step} steps  {shown}".rstrip())

    def add_artifact(self, path: Path) -> None:
        """Copy a file of the run to MLflow."""
        if self._sink is not None:
            self._sink.add_artifact(path)

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run: curves.png, the last values to MLflow, its status. A second call does nothing."""
        if self._journal is None or self._folder is None:
            return
        self._journal.write("finish", step=self._step, status=status)
        self._journal.close()
        self._journal = None
        picture = self._folder / "curves.png"
        try:
            curves.draw(self._folder / "journal.jsonl", picture)
        except Exception as error:  # a picture is never worth a run
            self._console.line(f"warning: cannot draw {picture}: {error}")
        else:
            self.add_artifact(picture)
        if self._sink is not None:
            self._close_sink(self._sink, status)
        self._console.close()

    def _close_sink(self, sink: MlflowSink, status: Status) -> None:
        if not sink.close(status=status, timeout=self._config.close_seconds):
            self._console.line(
                f"warning: MLflow did not get everything within {self._config.close_seconds:g} s; "
                f"{self._folder}/journal.jsonl has every value"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (isinstance(error, SystemExit) and not error.code):
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")


def _tags(environment: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return what may change from one start of a run to the next, as MLflow tags."""
    git = environment.get("git") or {}
    tags = {
        "run_folder": str(folder.resolve()),
        "host": environment.get("host"),
        "gpus": environment.get("gpus"),
        "world_size": environment.get("world_size"),
        "packages": environment.get("packages"),
        "git_branch": git.get("branch"),
        "git_dirty": git.get("dirty"),
        "git_diff_sha256": git.get("diff_sha256"),
        "slurm_job_id": (environment.get("slurm") or {}).get("SLURM_JOB_ID"),
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.name": " ".join(environment.get("command", ())),
        "mlflow.user": environment.get("user"),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in tags.items()
        if value is not None
    }
