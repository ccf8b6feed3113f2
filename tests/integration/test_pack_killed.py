"""kill -9 at random moments of packing: the same command, run again, gives what an undisturbed run gives."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.packing.verify import verify

KILLS = 20
PHOTOS = 90


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    noise = np.random.default_rng(0)
    rows = []
    for i in range(PHOTOS):
        grain = noise.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(grain).resize((800, 600)).save(root / f"{i:03}.jpg")
        rows += [{"image": f"{i:03}.jpg", "caption": f"Angela Merkel meets {i % 9} voters in Leeds."}] * (
            1 + i % 2
        )
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    rows.append({"image": "broken.jpg", "caption": "A broken photo."})
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "boxes.jsonl").write_text("")
    return root


def settings(corpus: Path, out: Path, **more: Any) -> PackConfig:
    source = {
        "kind": "tabular",
        "root": str(corpus),
        "files": {"train": "train.jsonl"},
        "boxes": "boxes.jsonl",
    }
    how = {
        "out": str(out),
        "splits": ["train"],
        "samples_per_shard": 7,
        "processes": 1,
        "max_reject_rate": 0.5,
    }
    return PackConfig.model_validate_json(json.dumps({"corpus": source} | how | more), strict=True)


def run(config: PackConfig, *, kill: Callable[[], bool] | None = None) -> None:
    """Pack in a process of its own, and kill it as soon as `kill` says so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["promptmeup.packing.pack", "promptmeup.training.pretrain", "spacy", "pytest"]
    )
    process = context.Process(target=_pack, args=(config,))
    process.start()
    while process.is_alive():
        if kill is not None and kill():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return
        process.join(0.005)
    assert process.exitcode == 0


def _pack(config: PackConfig) -> None:
    os.setsid()
    pack(config)


def random_moment(folder: Path, generator: random.Random) -> Callable[[], bool]:
    """Return what says, once so many shards are done and a little later, that it is time."""
    shards, pause = generator.randrange(13), generator.uniform(0, 0.15)
    if shards == 0:  # while libraries are loaded and the plan is made
        pause *= 10
    since: list[float] = []

    def is_time() -> bool:
        if not since and len(list(folder.glob("train/.packing/parts-*/*.json"))) >= shards:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= pause

    return is_time


@pytest.mark.timeout(900)
def test_killed_at_random_moments(corpus: Path, tmp_path: Path) -> None:
    run(settings(corpus, tmp_path / "whole"))
    expected = (tmp_path / "whole/train/manifest.json").read_bytes()
    generator = random.Random(0)
    unfinished = 0
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        processes = 2 if number % 5 == 4 else 1
        run(settings(corpus, out, processes=processes), kill=random_moment(out, generator))
        unfinished += not (out / "train/manifest.json").exists()
        run(settings(corpus, out))
        assert (out / "train/manifest.json").read_bytes() == expected, f"kill {number}"
        assert verify([out / "train"]).findings == []
        assert not list((out / "train").glob(".*")), "nothing is left behind"
    assert unfinished >= KILLS * 3 // 4, "most of the kills came in the middle"
