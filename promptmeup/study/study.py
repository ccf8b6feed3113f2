"""A study from its configuration to its report: plan, stages, cells, MLflow, report."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from promptmeup.errors import ConfigError, StudyError
from promptmeup.study.collect import alone, collect, is_finished, write_question
from promptmeup.study.commands import function
from promptmeup.study.effects import resolvable
from promptmeup.study.mlflow_cells import log_cells
from promptmeup.study.plan import Plan, Stage, make_plan
from promptmeup.study.preload import preload
from promptmeup.study.report import describe_status, write_report
from promptmeup.study.settings import StudyConfig
from promptmeup.study.workers import run_all, seconds_of
from promptmeup.tracking.console import duration
from promptmeup.tracking.mlflow_run import insist_on_mlflow
from promptmeup.tracking.provenance import code_version
from promptmeup.training.signals import SAVED_EXIT_CODE

SHOWN_LINES = 12
"""of a failed stage's log"""


def study(config: StudyConfig) -> None:
    """Run what is missing of a study's cells, and write its report.

    Raises:
        ConfigError: the study, its chain or a stage is set wrong.
        StudyError: a stage failed; all that does not need it has been run.
        SystemExit: stopped by a signal, with code 85; the same command goes on.
    """
    insist_on_mlflow(config.tracking.uri)
    plan = make_plan(config)
    write_question(plan, command_line())
    print(describe(plan), flush=True)
    code = 0 if config.report_only else _run(plan)
    with alone(config.out):
        collect(plan)
        log_cells(plan)
        print(describe_status(write_report(config.out)))
    print(f"report: {config.out / 'report.html'} and {config.out / 'report.md'}", flush=True)
    if code == SAVED_EXIT_CODE:
        print("stopped; the same command goes on", flush=True)
        sys.exit(code)
    if code:
        raise StudyError(_failures(plan))


def command_line() -> str:
    """Return the command that runs this study, as a person types it."""
    given = [word for word in sys.argv[1:] if not word.startswith(("processes=", "report_only="))]
    return shlex.join(["python", "launch/study.py", *given])


def describe(plan: Plan) -> str:
    """Return how many cells there are, how long they take, and what effects they can resolve."""
    config, stages = plan.config, plan.stages
    todo = [stage for stage in stages if not stage.done.exists()]
    seconds = seconds_of(stages, store=config.store)
    left, processes = sum(seconds[stage.folder] for stage in todo), processes_of(config)
    alone = sum(seconds[stage.folder] for cell in plan.cells for stage in cell.stages.values())
    shared = 1 - sum(seconds.values()) / alone if alone else 0.0
    arms = len({cell.arm for cell in plan.cells})
    lines = [
        f"{config.out.name}: {config.question}",
        f"{arms} arms x {len(config.seeds)} seeds = {len(plan.cells)} cells, "
        f"{sum(is_finished(cell) for cell in plan.cells)} of them finished",
        f"{len(stages)} stages, {len(todo)} to run: about {duration(left / processes)} in {processes} processes "
        f"(sharing stages saves {shared:.0%})",
    ]
    more = [*config.seeds, max(config.seeds) + 1, max(config.seeds) + 2]  # those that are there stay
    for name in config.measures or plan.chain.measures:
        sd = plan.chain.measures[name].sd
        count = len(config.seeds)
        if count < 2:
            lines.append(f"{name}: one seed says nothing of chance; give seeds=[1,2,3] or more")
            continue
        lines.append(
            f"{name}: {count} seeds find a difference of {resolvable(count, sd):.1f} points in 4 of 5 cases, if "
            f"differences scatter by {sd:g} over seeds; {count + 2} seeds: {resolvable(count + 2, sd):.1f} "
            f"(seeds=[{','.join(map(str, more))}])"
        )
    return "\n".join(lines)


def plan_study(config: StudyConfig, ranks: int | None) -> str:  # noqa: ARG001
    """Return what the study would do; nothing is run or written."""
    plan = make_plan(config)
    table = "\n".join(
        f"  {'done' if stage.done.exists() else 'to do'}  {stage.name:12} {stage.folder}"
        for stage in plan.stages
    )
    return f"{describe(plan)}\n{table}"


def processes_of(config: StudyConfig) -> int:
    """Return how many cells run at once."""
    return config.processes or len(_visible_gpus()) or len(os.sched_getaffinity(0))


def _visible_gpus() -> list[str]:
    """Return the numbers of the GPUs, without a library that would touch them before the stages' processes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [number for number in given.split(",") if number not in ("", "-1", "NoDevFiles")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _shares(processes: int) -> list[str | None]:
    """Return the GPUs of each worker; None where there are none to share."""
    gpus = _visible_gpus()
    if not gpus:
        return [None] * processes
    return [",".join(gpus[number::processes]) or gpus[number % len(gpus)] for number in range(processes)]


def require_gpus(stages: Sequence[Stage], shares: Sequence[str | None]) -> None:
    """Refuse ranks that would have to share a GPU, before worlds and teachers are made for them."""
    least = min(len(share.split(",")) if share else sys.maxsize for share in shares)
    for stage in stages:
        if stage.ranks > least:
            raise ConfigError(
                f"stage {stage.name} has {stage.ranks} ranks, and each of {len(shares)} processes has {least} of the "
                f"{len(_visible_gpus())} GPUs: set processes=1, or fewer ranks, or take a machine of more GPUs"
            )


def _run(plan: Plan) -> int:
    todo = [stage for stage in plan.stages if not stage.done.exists()]
    if not todo:
        return 0
    code_version()  # asked before the work tree can change; forked processes know it
    processes = processes_of(plan.config)
    shares = _shares(processes)
    require_gpus(todo, shares)
    if shares[0] is None:
        for stage in todo:
            function(stage.command)  # imports for all of them
        preload()
        if processes > 1 and "OMP_NUM_THREADS" not in os.environ:
            # processes that each take all cores wait for each other
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))

    def done() -> None:
        with alone(plan.config.out):
            collect(plan)

    return run_all(plan.stages, title=lambda stage: _title(stage, plan), done=done, gpus=shares)


def _title(stage: Stage, plan: Plan) -> str:
    """Return the cells that a stage is part of."""
    cells = [f"{cell.arm}, seed {cell.seed}" for cell in plan.cells if stage in cell.stages.values()]
    return cells[0] + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")


def _failures(plan: Plan) -> str:
    """Return what a person needs to know of the stages that are not done."""
    undone = [stage for stage in plan.stages if not stage.done.exists()]
    failed = [stage for stage in undone if stage.beside("failed.json").exists()]
    parts = []
    for stage in failed:
        log = stage.beside("log")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        shown = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
        parts.append(f"{stage.name} failed ({_title(stage, plan)}); {log} ends with\n{shown}")
    if waiting := len(undone) - len(failed):
        why = "need what failed" if failed else "were not run, since a worker ended before its time"
        parts.append(f"{waiting} further stages {why}")
    return "\n".join([*parts, "the same command tries them again"])
