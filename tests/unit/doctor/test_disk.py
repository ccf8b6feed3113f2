"""The run folder: written by all, large enough, and where a run in it would begin."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from promptmeup.data.opening import open_split
from promptmeup.data.remote import StagingConfig
from promptmeup.data.sources import single
from promptmeup.doctor import disk
from promptmeup.doctor.finding import look
from promptmeup.shard_format import write_json
from tests.unit.doctor.conftest import Configure


def _free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(disk.os, "statvfs", lambda _: SimpleNamespace(f_bavail=int(size), f_frsize=1))


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    with disk.probe_file(tmp_path / "runs/new") as notice:
        assert Path(notice["probe"]).parent == tmp_path
        assert disk.sees_probe(notice).status == "ok"
    assert list(tmp_path.iterdir()) == []
    with disk.probe_file(None) as notice:
        assert notice == {}


def test_a_node_that_does_not_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SEEN_SECONDS", 0.1)
    found = disk.sees_probe({"probe": str(tmp_path / "elsewhere.tmp")})
    assert found.status == "failed"
    assert f"does not see what rank 0 wrote to {tmp_path}" in found.text and "all nodes share" in found.text


def test_nobody_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with disk.probe_file(tmp_path / "run") as notice:
        found = disk.sees_probe(notice)
    assert found.status == "failed"
    assert (
        found.text
        == f"cannot write to {tmp_path}: Permission denied; choose another out=, or free space there"
    )


def test_room_for_checkpoints(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure("keep_checkpoints=2", "engine.precision=fp32")
    # 3 checkpoints of 16 bytes a parameter, two models of 4
    _free(monkeypatch, 5.6e9)
    found = disk.room(config, parameters=100_000_000)
    assert found.status == "ok" and found.facts["need_gb"] == 5.6
    assert "100.0 million parameters take 5.6 GB (3 checkpoints of 1.6 GB, 2 models)" in found.text
    _free(monkeypatch, 1e9)
    found = disk.room(config, parameters=100_000_000)
    assert found.status == "failed"
    assert "free 4.6 GB, set keep_checkpoints=1, or choose another out=" in found.text
    assert disk.room(configure("engine.precision=bf16"), parameters=100_000_000).facts["need_gb"] == 5.0


def test_checkpoints_that_are_there_need_no_more_room(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("engine.precision=fp32")
    folder = config.out / "checkpoints/step-00000004"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes(30_000))
    _free(monkeypatch, 30_000)
    found = disk.room(config, parameters=1000)  # 56 kB in all
    assert found.status == "ok" and "30.0 kB of it there" in found.text


def test_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.current_folder().status == "ok"
    monkeypatch.setattr(disk.os, "access", lambda *_: False)
    assert "cannot write to the current folder" in disk.current_folder().text


def _checkpoint(out: Path, order: dict[str, int | str]) -> None:
    tag = "step-00000004"
    (out / "checkpoints" / tag).mkdir(parents=True, exist_ok=True)
    state = {"step": 4, "pairs_consumed": 16, "order": order, "files": {}}
    write_json(out / "checkpoints" / tag / "run_state.json", state)


def test_where_a_run_begins(packed: Path, configure: Configure) -> None:
    config = configure()
    assert look("checkpoint", disk.start_point, config).text == "none: the run starts afresh"
    opened = open_split(str(packed), StagingConfig())
    order = single(opened, seed=config.seed, window=config.data.window, pairs=config.data.pairs).identity
    opened.close()
    _checkpoint(config.out, order)
    found = look("checkpoint", disk.start_point, config)
    assert (found.status, found.text) == ("ok", "the run goes on from step-00000004, after 16 pairs")
    done = configure("epochs=null", "steps=4")
    assert "nothing is left to train" in look("checkpoint", disk.start_point, done).text
    found = look("checkpoint", disk.start_point, configure("seed=1"))
    assert found.status == "failed"
    assert "seed was 0 and is 1; restore what changed, or choose another out=" in found.text
    (config.out / "checkpoints/step-00000004/run_state.json").write_text("{")
    assert look("checkpoint", disk.start_point, config).status == "failed"
    _checkpoint(config.out, order)
    newer = config.out / "checkpoints/step-00000008"
    newer.mkdir()
    (newer / "run_state.json").write_text("{")
    found = look("checkpoint", disk.start_point, config)
    assert found.status == "warning", "the run itself gets on"
    assert "step-00000008 (run_state.json cannot be read" in found.text
    assert "the run puts it aside and goes on from step-00000004, after 16 pairs" in found.text
