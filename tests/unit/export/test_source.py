"""Which folder of which run is exported."""

import json
from pathlib import Path

import pytest

from promptmeup.errors import CheckpointError, ConfigError, WeightsError
from promptmeup.export.source import find_source


def pretraining(run: Path, *, models: tuple[str, ...] = (), steps: tuple[int, ...] = ()) -> Path:
    run.mkdir()
    (run / "config.yaml").write_text("model: {fusion: true}\n")
    (run / "config-3.yaml").write_text("model: {fusion: true}\nsteps: 3\n")
    for name in models:
        (run / name).mkdir()
        (run / name / "model.json").touch()
        (run / name / "model.safetensors").touch()
    for step in steps:
        folder = run / f"checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "run_state.json").touch()
    return run


def finetuning(run: Path, *, seeds: tuple[int, ...], best: int | None) -> Path:
    for seed in seeds:
        folder = run / f"seed-{seed}"
        (folder / "best").mkdir(parents=True)
        (folder / "config.yaml").write_text("model: runs/base\n")
        (folder / "best/config.json").write_text(json.dumps({"model_type": "promptmeup_entities"}))
    if best is not None:
        (run / "best").symlink_to(Path(f"seed-{best}") / "best", target_is_directory=True)
    return run


def test_first_that_is_there(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "a", models=("best", "model"), steps=(4, 8))
    source = find_source(run, None)
    assert (source.kind, source.name, source.run, source.is_checkpoint) == ("pretrained", "best", run, False)
    assert source.config["steps"] == 3, "the last start's"
    assert find_source(run / "model", None).name == "model"
    assert find_source(run, "step-00000004").is_checkpoint
    assert find_source(run, "latest").name == "step-00000008"
    assert find_source(pretraining(tmp_path / "b", steps=(4,)), None).name == "step-00000004"
    assert find_source(pretraining(tmp_path / "c", models=("model",), steps=(4,)), None).name == "model"


def test_fine_tuned(tmp_path: Path) -> None:
    run = finetuning(tmp_path / "run", seeds=(1, 2), best=2)
    for given, seed in ((run, 2), (run / "best", 2), (run / "seed-1", 1), (run / "seed-1/best", 1)):
        source = find_source(given, None)
        assert (source.kind, source.name, source.run.name) == ("finetuned", "best", f"seed-{seed}")
    unfinished = finetuning(tmp_path / "unfinished", seeds=(1,), best=None)
    with pytest.raises(ConfigError, match=r"export one seed with run=.*unfinished/seed-1"):
        find_source(unfinished, None)
    (unfinished / "seed-1/best/config.json").unlink()
    with pytest.raises(WeightsError, match="let its first evaluation finish"):
        find_source(unfinished / "seed-1", None)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="stop it with Ctrl-C, which saves one"):
        find_source(pretraining(tmp_path / "run"), None)
    with pytest.raises(CheckpointError, match="it has no checkpoint either"):
        find_source(tmp_path / "run", "best")
    with pytest.raises(CheckpointError, match=r"has no complete \.\./\.\./x; it has none"):
        find_source(tmp_path / "run", "../../x")
    model = pretraining(tmp_path / "other", models=("model",)) / "model"
    moved = model.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="lies in no run"):
        find_source(moved, None)
