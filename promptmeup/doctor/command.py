"""What launch/doctor.py does: parse, look, print on rank 0; leaves with 0, 1 (a check failed) or 2 (configuration)."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of the command line; argparse says what is wrong with them and leaves."""
    parser = argparse.ArgumentParser(
        prog="doctor.py",
        description="Check what a pre-training run needs, on every rank that is started: devices, "
        "exchanges between the "
        "ranks, cores, disk, shards, soft labels, weights, tracker, time left. Give the run's own configuration and "
        "start it as the run will be started; without one, the machine alone is checked.",
        epilog="Exit code: 0 where a run can start (warnings included), 1 where a check failed, 2 for "
        "the configuration.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the run's YAML file; see configs/pretrain"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace the file's")
    parser.add_argument("--json", action="store_true", help="print one JSON object in the place of lines")
    parser.add_argument(
        "--full",
        action="store_true",
        help="compare every shard with its SHA-256, not one a rank; the ranks share the work",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait for other ranks (default 60)",
    )
    # The deepspeed launcher adds --local_rank=N to every process; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_intermixed_args(argv)
    if flags.timeout <= 0:
        parser.error(f"--timeout is {flags.timeout:g}, it must be above 0")
    return flags


def run(flags: argparse.Namespace) -> None:
    """Look, and leave with the exit code.

    Raises:
        ConfigError: the configuration is wrong, or the launcher's variables.
        TrainingError: this rank cannot reach the others.
    """
    cpu_is_meant = (
        os.environ.get("DS_ACCELERATOR") == "cpu"
    )  # DeepSpeed's own switch; our engine sets it later
    with _only_the_report() as report_to:
        # these imports take seconds, and some libraries print while they are imported
        from promptmeup.config import load
        from promptmeup.doctor.checkup import Settings, check_up
        from promptmeup.training.settings import PretrainConfig

        has_config = flags.config is not None or flags.overrides
        config = load(PretrainConfig, flags.config, flags.overrides) if has_config else None
        outcome = check_up(Settings(config, flags.timeout, flags.full, cpu_is_meant))
        code = 0
        if outcome.report is not None:
            code = outcome.report.exit_code
            text = (
                json.dumps(outcome.report.as_json(), ensure_ascii=False)
                if flags.json
                else str(outcome.report)
            )
            print(text, file=report_to, flush=True)
    if outcome.hangs:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _only_the_report() -> Iterator[TextIO]:
    """Yield the standard output, and send what anything else prints there to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w", encoding="utf-8", closefd=False) as out, redirect_stdout(sys.stderr):
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
