"""Whole runs on corpora that are remote, blended or damaged: the curves of the same data at hand."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from promptmeup.data.reader import PackedSplit
from promptmeup.shard_format import key_of
from promptmeup.training.checkpoint import complete
from tests.integration.conftest import tiny_config, train_on_rank
from tests.integration.test_training import _die_at_step, curve
from tests.support.ranks import RankError, run_ranks
from tests.support.servers import faulty_server, s3_server

NO_LABELS = ("loss.weights.object_entity=0", "loss.weights.image_relation=0")


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def local(news_world: Path) -> Path:
    """A run of ten steps on local shards."""
    run = news_world / "local"
    config = tiny_config(news_world, f"out={run}", "steps=10", "evaluate_every=5")
    assert run_ranks(train_on_rank, 2, config, timeout=120) == [True, True]
    return run


def remote(url: str, cache: Path, *overrides: str) -> tuple[str, ...]:
    settings = {"folder": str(cache), "backoff": 0.05, "attempts": 4}
    return (
        *(f"data.train={url}/train", f"data.val={url}/val", "data.workers=1"),
        *(f"data.cache.{name}={value}" for name, value in settings.items()),
        *overrides,
    )


def test_shards_by_http_give_the_same_run(news_world: Path, local: Path, tmp_path: Path) -> None:
    """Two ranks with a worker each, on a server that breaks off, sends nonsense and errors at first."""
    shards = sorted(path.name for path in (news_world / "packed/train").glob("*.tar"))
    name = next((news_world / "packed/train/labels").iterdir()).name
    with faulty_server(news_world / "packed") as server:
        server.faults = {shards[0]: ["break"], shards[1]: ["wrong"], "index.npy": [503]}
        settings = remote(
            server.url, tmp_path / "cache", f"data.labels={name}", "steps=10", "evaluate_every=5"
        )
        config = tiny_config(news_world, f"out={tmp_path}/run", *settings)
        assert run_ranks(train_on_rank, 2, config, timeout=120) == [True, True]
    assert curve(tmp_path / "run") == curve(local)
    kept = {path.name for path in (tmp_path / "cache").glob("*/*.tar")}
    assert kept == set(shards) | {path.name for path in (news_world / "packed/val").glob("*.tar")}


def test_shards_by_s3_give_the_same_run_in_a_cache_of_two_shards(
    news_world: Path, local: Path, tmp_path: Path
) -> None:
    import s3fs

    sizes = [path.stat().st_size for path in (news_world / "packed/train").glob("*.tar")]
    limit = 2.5 * max(sizes) / 1e9
    with s3_server() as options:
        filesystem = s3fs.S3FileSystem(**options, skip_instance_cache=True)
        filesystem.mkdir("news")
        for path in (news_world / "packed").rglob("*"):
            if path.is_file():
                filesystem.pipe(f"news/{path.relative_to(news_world)}", path.read_bytes())
        settings = remote(
            "s3://news/packed",
            tmp_path / "cache",
            f"data.cache.options={json.dumps(options)}",
            f"data.cache.limit_gb={limit}",
            "steps=10",
            "evaluate_every=5",
        )
        config = tiny_config(news_world, f"out={tmp_path}/run", *settings)
        assert run_ranks(train_on_rank, 2, config, timeout=120) == [True, True]
    assert curve(tmp_path / "run") == curve(local)
    kept = [
        path.stat().st_size for path in (tmp_path / "cache").rglob("shard-*") if path.parent.name != ".locks"
    ]
    assert 0 < sum(kept) <= limit * 1e9


def test_a_server_that_is_gone_ends_the_run_with_one_error(news_world: Path, tmp_path: Path) -> None:
    with faulty_server(news_world / "packed") as server:
        url = server.url
    config = tiny_config(news_world, f"out={tmp_path}/run", "steps=2", *remote(url, tmp_path / "cache"))
    with pytest.raises(RankError, match=r"cannot fetch .*/train/manifest.json: 4 attempts in"):
        run_ranks(train_on_rank, 1, config, timeout=120)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_blend_that_was_killed_goes_on_with_the_same_curve(
    news_world: Path, tmp_path: Path, ranks: int
) -> None:
    blend = f"data.blend=[{{path: {news_world}/packed/val, share: 0.3}}]"
    common = (blend, "steps=12", "save_every=4")
    whole = tiny_config(news_world, f"out={tmp_path}/whole", *common)
    assert run_ranks(train_on_rank, ranks, whole, timeout=120) == [True] * ranks
    broken = tiny_config(news_world, f"out={tmp_path}/broken", *common)
    with pytest.raises(RankError):
        run_ranks(_die_at_step, ranks, broken, 7, signal.SIGKILL, timeout=120)
    assert run_ranks(train_on_rank, ranks, broken, timeout=120) == [True] * ranks
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    state = json.loads((tmp_path / "broken/checkpoints/step-00000012/run_state.json").read_text())
    assert state["pairs_consumed"] == 12 * 16
    assert state["order"]["fingerprint"].count("+") == 1
    assert state["order"]["blend"] == "717:307"
    other = tiny_config(news_world, f"out={tmp_path}/broken", "steps=14", blend.replace("0.3", "0.4"))
    with pytest.raises(
        RankError, match=r"another data order or other labels: blend was '717:307' and is '614:410'"
    ):
        run_ranks(train_on_rank, ranks, other, timeout=120)


def test_damage_costs_its_own_pairs_alone_and_is_listed(news_world: Path, tmp_path: Path) -> None:
    split = PackedSplit(Path(shutil.copytree(news_world / "packed/train", tmp_path / "train")))
    row = split.index[7]
    path = split.folder / split.manifest.shards[row["shard"]].name
    with path.open("r+b") as file:
        file.seek(int(row["image_offset"]) + 100)
        file.write(b"\0" * 64)
    os.utime(path, ns=(0, 0))
    curves = []
    for ranks in (1, 2):
        run = tmp_path / f"run{ranks}"
        config = tiny_config(news_world, f"out={run}", f"data.train={split.folder}", "steps=12", *NO_LABELS)
        assert run_ranks(train_on_rank, ranks, config, timeout=120) == [True] * ranks
        lines = [json.loads(line) for line in (run / "damaged.jsonl").read_text().splitlines()]
        # prefetched batches are reported when they are used: an epoch shows a photo as often as it has pairs
        assert {line["key"] for line in lines} == {key_of(int(row["image_id"]))}
        assert {line["offset"] for line in lines} == {int(row["image_offset"])}
        assert all(line["by"] != line["key"] and "CRC-32" in line["reason"] for line in lines)
        curves.append((curve(run), sorted(line["position"] for line in lines)))
    assert curves[0][1] == curves[1][1] != []
    for step, values in curves[0][0].items():
        assert values["loss"] == pytest.approx(curves[1][0][step]["loss"], abs=1e-5)
    strict = tiny_config(
        news_world,
        f"out={tmp_path}/strict",
        f"data.train={split.folder}",
        "steps=12",
        "data.max_damaged=0",
        *NO_LABELS,
    )
    with pytest.raises(
        RankError, match=r"samples read by this rank are damaged, more than data.max_damaged = 0"
    ):
        run_ranks(train_on_rank, 1, strict, timeout=120)


def test_another_batch_size_goes_on_with_the_pairs_not_yet_seen(news_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = tiny_config(news_world, f"out={run}", "steps=3", *NO_LABELS)
    assert run_ranks(train_on_rank, 1, first, timeout=120) == [True]
    rest = ("steps=null", "epochs=1", "global_batch=24", *NO_LABELS)
    assert run_ranks(train_on_rank, 1, tiny_config(news_world, f"out={run}", *rest), timeout=120) == [True]
    state = json.loads((run / "checkpoints" / complete(run)[-1] / "run_state.json").read_text())
    pairs = PackedSplit(news_world / "packed/train").manifest.pairs
    steps = -(-(pairs - 3 * 16) // 24)
    assert state["step"] == 3 + steps
    assert state["pairs_consumed"] == 3 * 16 + steps * 24
    assert state["epoch"] == state["pairs_consumed"] // pairs
