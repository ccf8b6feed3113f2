"""Every command answers --help and refuses nonsense; every shipped configuration loads."""

import ast
import runpy
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from promptmeup.config import Config, load
from promptmeup.corpora.synthetic import SyntheticConfig
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.packing.settings import PackConfig
from promptmeup.study.plan import make_plan
from promptmeup.study.settings import ChainConfig, StudyConfig
from promptmeup.training.label import LabelRunConfig
from promptmeup.training.settings import PretrainConfig

ROOT = Path(__file__).parents[2]
LOOKERS = ["shards/gallery.py", "shards/verify.py"]
"""Commands that take folders and no configuration."""
FLAGS = ["launch/predict.py"]
"""Commands with flags of their own."""
HARMLESS = ["launch/doctor.py", "launch/scaling.py"]
"""Commands that change nothing anyway, and have no --dry-run."""
COMMANDS = sorted(
    name
    for folder in ("launch", "shards")
    for path in (ROOT / folder).glob("*.py")
    if (name := str(path.relative_to(ROOT))) not in LOOKERS + FLAGS
)
SCHEMAS: dict[str, type[Config]] = {
    "configs/pack/synthetic_world.yaml": SyntheticConfig,
    "configs/pack": PackConfig,
    "configs/pretrain": PretrainConfig,
    "configs/label": LabelRunConfig,
    "configs/finetune": FinetuneConfig,
    "configs/study": StudyConfig,
}
CHAINS = "configs/study/chain_*.yaml"
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def schema_of(path: str) -> type[Config]:
    if fnmatch(path, CHAINS):
        return ChainConfig
    return SCHEMAS.get(path) or SCHEMAS[str(Path(path).parent)]


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
    assert ("--dry-run" in shown) is (command not in HARMLESS)
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


@pytest.mark.parametrize("command", FLAGS)
def test_command_with_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    assert "--model DIR" in shown
    assert "--dry-run" in shown
    assert run(command, "--nonsense") == 2
    assert "required: --model" in capsys.readouterr().err
    assert run(command, "--model", "no/such/folder", "--text", "Ada") == 1
    assert "no/such/folder holds no fine-tuned model" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_files_only_connect(path: Path) -> None:
    """A docstring that shows the command, imports, at most one function, and the call."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert f"launch/{path.name}" in (ast.get_docstring(tree) or "")
    assert len(text.splitlines()) <= 25
    assert isinstance(tree.body[-1], ast.If) and "__main__" in ast.unparse(tree.body[-1].test)
    decisions = ast.For, ast.While, ast.Try, ast.If, ast.IfExp, ast.BoolOp
    inner = [node for part in [*tree.body[:-1], *tree.body[-1].body] for node in ast.walk(part)]
    assert not any(isinstance(node, decisions) for node in inner)


@pytest.mark.parametrize("path", CONFIGS)
def test_config_loads(path: str) -> None:
    load(schema_of(path), ROOT / path)


@pytest.mark.parametrize("path", [path for path in CONFIGS if schema_of(path) is StudyConfig])
def test_study_is_planned(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chain, the names in it and its claims resolve, where there is no data at all."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(load(StudyConfig, ROOT / path))
    assert plan.cells
    assert [entry.name for entry in tmp_path.iterdir()] == ["configs"]


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
