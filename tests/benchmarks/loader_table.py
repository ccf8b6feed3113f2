"""Our loader and others asked the same questions on the same samples: ``python -m tests.benchmarks.loader_table``.

Every cell is measured here and now; a library that is not installed has a column that says so.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from promptmeup.shard_format import write_json
from tests.benchmarks import harness
from tests.benchmarks.peers import compare, peer
from tests.benchmarks.peers.peer import Peer
from tests.benchmarks.peers.questions import GLOBAL_BATCH, PEERS, QUESTIONS, SHARDS
from tests.support.packed import write_packed_split

SAMPLES = 1003
"""no multiple of the global batch, of the ranks or of the shards: the last of each is short"""
PATIENCE = 120.0
"""seconds for one library"""


def write_corpus(folder: Path) -> Path:
    """Write small photos with one caption each into shards of nearly equal size."""
    return write_packed_split(
        folder,
        num_images=SAMPLES,
        captions_per_image=1,
        boxes_per_image=2,
        seed=0,
        falsified=False,
        images_per_shard=-(-SAMPLES // SHARDS),
    )


def ask(library: Peer, split: Path, scratch: Path) -> dict[str, str]:
    """Return the library's answers; a process of its own keeps crashes and hangs away from the others."""
    try:
        peer.require(library.module, library.package)
    except peer.MissingPeerError:
        return dict.fromkeys(QUESTIONS, "not installed")
    scratch.mkdir()
    file, log = scratch / "cells.json", scratch / "log.txt"
    command = [sys.executable, "-m", "tests.benchmarks.peers.questions", library.name, str(split), str(file)]
    temporary = scratch / "tmp"
    temporary.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # what is left of its ranks, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    cells: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    reason = f"not within {PATIENCE:.0f} s" if code is None else f"crashed (exit code {code})"
    if len(cells) < len(QUESTIONS):
        print(f"{library.name}: {reason}\n{log.read_text()[-3000:]}", file=sys.stderr)
    return dict.fromkeys(QUESTIONS, reason) | cells


def rows(answers: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Return one row a question from the answers by library."""
    return [
        {"question": question} | {name: cells[question] for name, cells in answers.items()}
        for question in QUESTIONS
    ]


def title(library: Peer) -> str:
    return f"{library.name} {peer.version(library.package)}".strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, print a Markdown table, and write {"environment", "rows", "summary"} for ``--json FILE``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loader_table", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    arguments = parser.parse_args(argv)
    where = harness.environment()
    began = time.monotonic()
    answers = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        split = write_corpus(folder / "train")
        for number, library in enumerate(PEERS):
            answers[title(library)] = ask(library, split, folder / str(number))
    table = rows(answers)
    seconds = time.monotonic() - began
    print(
        f"loader_table: {SAMPLES} samples in {SHARDS} shards, global batch {GLOBAL_BATCH}, {where['cpu']}, "
        f"{where['cpus']} cores, {seconds:.0f} s\n"
    )
    print(compare.markdown(["", *answers], [list(row.values()) for row in table]))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, {"environment": where, "rows": table, "summary": {"seconds": seconds}})


if __name__ == "__main__":
    main()
