"""Every command answers --help and refuses nonsense; every shipped configuration loads."""

import runpy
import sys
from pathlib import Path

import pytest

from promptmeup.config import Config, load
from promptmeup.corpora.synthetic import SyntheticConfig
from promptmeup.packing.settings import PackConfig
from promptmeup.training.label import LabelRunConfig
from promptmeup.training.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]
LOOKERS = ["shards/gallery.py", "shards/verify.py"]
"""Commands that take folders and no configuration."""
COMMANDS = sorted(
    name
    for folder in ("launch", "shards")
    for path in (ROOT / folder).glob("*.py")
    if (name := str(path.relative_to(ROOT))) not in LOOKERS
)
SCHEMAS: dict[str, type[Config]] = {
    "configs/pack/synthetic_world.yaml": SyntheticConfig,
    "configs/pack": PackConfig,
    "configs/pretrain": PretrainConfig,
    "configs/label": LabelRunConfig,
}
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def run(command: str, *arguments: str) -> int:
    old = sys.argv
    sys.argv = [command, *arguments]
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / command), run_name="__main__")
    finally:
        sys.argv = old
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "--config" in shown
    assert "a.b=c" in shown
    assert run(command, "--config", "no/such/file.yaml") == 2
    assert "cannot read the configuration no/such/file.yaml" in capsys.readouterr().err
    assert run(command, "nonsense.key=1") == 2
    assert "unknown key 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("command", LOOKERS)
def test_command_on_folders(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "DIR" in capsys.readouterr().out
    assert run(command, "/no/such/folder") in (1, 2)
    assert "/no/such/folder holds no packed split" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS)
def test_config_loads(path: str) -> None:
    schema = SCHEMAS.get(path) or SCHEMAS[str(Path(path).parent)]
    load(schema, ROOT / path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=1", "steps=1"], "give either steps or epochs"),
        (["data.image.size=64"], "data.image.size = 64 and model.vision.image_size = 96 must be equal"),
        (
            ["model.fusion=false"],
            "these losses need the fusion half: object_entity, image_relation, matching",
        ),
        (["loss.weights={}", "loss.weights.image_text=0", "model.fusion=1"], "model.fusion"),
        (["global_batch=1"], "'global_batch' = 1"),
        (["engine.zero_stage=4"], "'engine.zero_stage' = 4"),
        (["tracking.uri=mlruns"], "sqlite:///mlflow.db"),
    ],
)
def test_pretraining_mistakes(overrides: list[str], message: str) -> None:
    from promptmeup.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, ROOT / "configs/pretrain/tiny.yaml", overrides)
    assert message in str(caught.value)
