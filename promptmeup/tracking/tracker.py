"""One object through which a run reports: the journal first, then the console, MLflow behind."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from promptmeup.config import Config
from promptmeup.tracking import curves
from promptmeup.tracking.console import Console, table
from promptmeup.tracking.journal import Journal
from promptmeup.tracking.mlflow import MlflowSink, Status
from promptmeup.tracking.mlflow_run import absolute_store
from promptmeup.tracking.provenance import redact, write_run_folder
from promptmeup.tracking.settings import RunFacts, TrackedDataset, TrackingConfig, flatten

_LARGEST_ARTIFACT = 64 << 20
"""bytes; a gallery of 48 photos has some 5 MB"""


class Tracker:
    """Reports of one run, made on rank 0 alone; the other ranks take `Tracker.off()`.

    Used as a context: an exception inside ends the run as FAILED (KILLED for Ctrl-C), leaving it as
    FINISHED, so that MLflow never shows a run as RUNNING that is not. `told_to_stop` makes it KILLED at once, also
    while training's thread hangs in a collective. Names with a meaning for people:
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
        parent: Path | None = None,
    ) -> None:
        """Begin, or go on after `step` steps when the folder has a journal already.

        Args:
            config: the command's resolved configuration.
            environment: of `provenance.environment`.
            step: optimizer steps that the resumed checkpoint holds.
            datasets: packed splits that the run reads.
            parent: run folder of the pre-training, for a fine-tuning run.

        Raises:
            OSError: the run folder cannot be written; after this, nothing here raises.
        """
        if self._folder is None:
            return
        write_run_folder(self._folder, config=config, environment=environment)
        path = self._folder / "journal.jsonl"
        resumed = step > 0 or (path.exists() and path.stat().st_size > 0)
        self._journal = Journal(path)
        self._step = step
        store = absolute_store(self._config.uri)
        self._journal.write(
            "resume" if resumed else "start",
            step=step,
            environment=environment,
            # what `sync` cannot find elsewhere
            datasets=[asdict(replace(data, source=redact(data.source))) for data in datasets],
            parent=str(parent.resolve()) if parent else None,
            store=redact(store) if store else None,
        )
        self._console.start(step)
        if self._config.uri is not None:
            facts = run_facts(
                config.model_dump(mode="json"),
                environment=environment,
                folder=self._folder,
                datasets=datasets,
                parent=parent,
            )
            self._sink = MlflowSink(self._folder, config=self._config, facts=facts, say=self._console.line)

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
        """Copy a file to MLflow, now and with every `sync`, unless it is absent or has more than 64 MB."""
        if self._journal is None or self._folder is None or not path.is_file():
            return
        size = path.stat().st_size
        if size > _LARGEST_ARTIFACT:
            self._console.line(f"{path} stays out of MLflow: it has {size >> 20} MB, more than 64")
            return
        path, folder = path.resolve(), self._folder.resolve()
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        self._journal.write("artifact", step=self._step, path=str(name))
        if self._sink is not None:
            self._sink.flush()

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
        if self._sink is not None:
            self._close_sink(self._sink, status)
        self._console.close()

    def _close_sink(self, sink: MlflowSink, status: Status) -> None:
        if not sink.close(status=status, timeout=self._config.close_seconds):
            self._console.line(
                f"warning: MLflow did not get everything within {self._config.close_seconds:g} s; "
                f"{self._folder}/journal.jsonl has every value; send the rest with: "
                f"python -m promptmeup.tracking.sync {self._folder}"
            )

    def told_to_stop(self, signal: str) -> None:
        """Note a signal as it comes: training's own thread may hang in a collective until it is killed."""
        journal = self._journal
        if journal is not None:
            with suppress(ValueError):  # it is being closed
                journal.write("signal", step=self._step, signal=signal)
        if self._sink is not None:
            self._sink.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (isinstance(error, SystemExit) and not error.code):
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")


def run_facts(
    config: Mapping[str, Any],
    *,
    environment: Mapping[str, Any],
    folder: Path,
    datasets: Sequence[TrackedDataset],
    parent: Path | None,
) -> RunFacts:
    """Return what MLflow shows beside the curves, of a resolved configuration and an environment."""
    return RunFacts(params=flatten(config), tags=_tags(environment, folder), datasets=datasets, parent=parent)


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
