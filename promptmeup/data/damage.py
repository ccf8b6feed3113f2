"""What is done about damaged samples while a run goes on: each is reported, and too many stop it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from promptmeup.errors import ShardError
from promptmeup.records import Batch, Substitute

FIRST = 10_000
"""The share is taken of this many pairs at least: at the start, one damaged sample is a large share."""


def watched(
    batches: Iterator[Batch], *, limit: float, report: Callable[[Substitute], None]
) -> Iterator[Batch]:
    """Yield the batches, reporting every substitute in them.

    Raises:
        ShardError: more than `limit` of the pairs read by this rank were damaged.
    """
    read = damaged = 0
    for batch in batches:
        read += len(batch)
        damaged += len(batch.substitutes)
        for substitute in batch.substitutes:
            report(substitute)
        if damaged > limit * max(read, FIRST):
            last = batch.substitutes[-1] if batch.substitutes else None
            example = f"; the last: {last.shard}, key {last.key}, {last.reason}" if last else ""
            raise ShardError(
                f"{damaged} of {read} samples read by this rank are damaged, more than data.max_damaged = {limit:g} "
                f"of at least {FIRST}{example}. They are listed in damaged.jsonl of the run; run shards/verify.py, "
                "restore the shards that it names, then start the same command again"
            )
        yield batch


def report_to(file: Path, *, rank: int, warn: Callable[[str], None]) -> Callable[[Substitute], None]:
    """Return a reporter that appends a JSON line to `file`, which all ranks share, and warns.

    A full disk costs the line and not the run.
    """

    def report(substitute: Substitute) -> None:
        line = json.dumps(asdict(substitute) | {"rank": rank}) + "\n"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:  # one write: lines of several ranks do not mix
                lines.write(line)
        except OSError as error:
            warn(f"cannot write {file}: {error.strerror}; training goes on")
        warn(
            f"{substitute.shard}, byte {substitute.offset}, key {substitute.key}: {substitute.reason}; "
            f"photo {substitute.by} is shown instead"
        )

    return report
