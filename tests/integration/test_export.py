"""launch/export.py: any checkpoint becomes a folder that transformers loads, with exactly the run's weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from promptmeup.config import command, load
from promptmeup.errors import CheckpointError, ConfigError, UserError
from promptmeup.export.export import ExportConfig, export
from promptmeup.extraction.folder import load_finetuned
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.extraction.start import EncodersConfig, open_start
from promptmeup.models.pretrained import PretrainedAlignmentModel
from promptmeup.models.saving import load_model, load_saved_tokenizer, state_fingerprint
from promptmeup.training.checkpoint import complete
from tests.integration.conftest import tiny_config, train_on_rank
from tests.support.ranks import run_ranks
from tests.support.real_data import ROOT

# a CNN whose running means and variances change in training: buffers, of which each rank has its own
CNN = (
    "model.vision.kind=timm",
    "model.vision.architecture=test_resnet",
    "model.vision.batch_norm=trained",
    "model.vision.image_size=64",
    "data.image.size=64",
)


def exported(run: Path, out: Path, **settings: Any) -> Path:
    export(ExportConfig(run=run, out=out, **settings))
    return out


def in_a_fresh_process(code: str, folder: Path) -> str:
    """Run `code` in `folder` as a user would; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def inputs(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1000, 20000, (2, 8), generator=generator),
        "attention_mask": torch.arange(8) < torch.tensor([[8], [5]]),
        "pixel_values": torch.randn(2, 3, size, size, generator=generator),
        "boxes": torch.tensor([[[0.1, 0.0, 0.7, 0.6]]]).repeat(2, 1, 1),
        "box_mask": torch.ones(2, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize(
    ("stage", "ranks", "precision", "more"),
    [
        (0, 1, "fp32", CNN),
        (0, 2, "bf16", ()),
        (1, 1, "fp32", ()),
        (1, 2, "bf16", ("model.prompt_head=classifier",)),
        (2, 2, "bf16", ()),
        (3, 1, "bf16", ()),
        (3, 2, "fp32", CNN),
    ],
)
def test_any_checkpoint_has_the_runs_weights(
    news_world: Path, tmp_path: Path, stage: int, ranks: int, precision: str, more: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    engine = (f"engine.zero_stage={stage}", f"engine.precision={precision}", "data.val=null")
    config = tiny_config(news_world, f"out={run}", "steps=2", *engine, *more)
    assert run_ranks(train_on_rank, ranks, config, timeout=120) == [True] * ranks
    expected = load_model(run / "model").state_dict()
    # the run's own model is out of the way, and where training started from too
    (run / "model").rename(tmp_path / "model")
    out = exported(run, tmp_path / "out")
    model = PretrainedAlignmentModel.from_pretrained(out)
    found = model.alignment.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    if precision == "bf16":
        assert any(not torch.equal(value, value.bfloat16().float()) for value in found.values()), (
            "rounded copies"
        )
    if more == CNN:
        assert found["vision.backbone.bn1.num_batches_tracked"] > 0
    assert model.config.source["step"] == 2 and model.config.eval_mode == "whole"
    assert [row["name"] for row in model.config.source["data"]] == ["packed/train"]


@pytest.fixture(scope="module")
def run(news_world: Path) -> Path:
    """Interrupted in step 3 of more, in two parts: best/ and a checkpoint, and no model/."""
    folder = news_world / "to_export"
    settings = (
        f"out={folder}",
        "steps=3",
        "evaluate_every=2",
        "engine.zero_stage=3",
        "engine.precision=bf16",
    )
    assert run_ranks(train_on_rank, 2, tiny_config(news_world, *settings), timeout=120) == [True, True]
    (folder / "model").rename(folder.with_name("model_of_to_export"))
    return folder


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    (run.parent / "hub").mkdir()
    return exported(
        run, run.parent / "hub/student", checkpoint="latest", mlflow_model=True, license="cc-by-4.0"
    )


def test_an_unfinished_run_starts_fine_tuning(run: Path, folder: Path, tmp_path: Path) -> None:
    """What `open_start` tells those whose run has no model yet."""
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UserError, match=r"`python launch/export.py run=\S+ out=DIR` and give model=DIR"):
        open_start(str(tmp_path), encoders=EncodersConfig(), text_only=False)
    start = open_start(str(folder), encoders=EncodersConfig(), text_only=False)
    expected = load_model(run.with_name("model_of_to_export"))
    assert torch.equal(
        start.encoder.text.embeddings.word_embeddings.weight, expected.text.embeddings.word_embeddings.weight
    )
    assert (
        start.tokenizer("a bridge")["input_ids"]
        == load_saved_tokenizer(run / "best")("a bridge")["input_ids"]
    )


def test_nothing_of_the_first_weights_is_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*arguments: Any, **named: Any) -> Path:
        raise AssertionError("looked for original weights")

    for module in ("weights", "text", "vision"):
        monkeypatch.setattr(f"promptmeup.models.{module}.find", absent)
    (tag,) = complete(run)
    out = exported(run, tmp_path / "out", checkpoint=tag)
    assert json.loads((out / "export.json").read_text())["weights"] == tag == "step-00000003"


LOAD = """
from transformers import AutoModel
import promptmeup
model = AutoModel.from_pretrained("student", trust_remote_code=False)
"""
SAVE = """
import sys
assert "deepspeed" not in sys.modules and type(model).__name__ == "PretrainedAlignmentModel"
assert not model.training
torch.save(model(**torch.load("inputs.pt")), "features.pt")
"""


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(code)


def test_loaded_in_a_fresh_process_and_by_mlflow(news_world: Path, run: Path, folder: Path) -> None:
    """By the card's own lines, which import us first, and the other way round; MLflow finds the same similarities."""
    place = folder.parent
    shutil.copy(sorted((news_world / "corpus").rglob("*.jpg"))[0], place / "photo.jpg")
    torch.save(inputs(32), place / "inputs.pt")
    model = load_model(run.with_name("model_of_to_export"))
    names = ("pixel_values", "input_ids", "attention_mask", "boxes", "box_mask")
    with torch.no_grad():
        expected = model(*(inputs(32)[name] for name in names))
    of_card = snippet((folder / "README.md").read_text())
    for code in (f"import torch\n{LOAD}", f"{of_card}\nimport torch"):
        printed = in_a_fresh_process(code + SAVE, place)
        found = torch.load(place / "features.pt")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    similarities = [float(number) for number in re.findall(r"-?\d+\.\d+", printed)[:2]]
    served = mlflow.pyfunc.load_model(str(folder / "mlflow_model"))
    texts = ["The mayor opens a bridge.", "Nurses on strike."]
    table = pd.DataFrame([{"text": text, "image": str(place / "photo.jpg")} for text in texts])
    answers = [json.loads(answer) for answer in served.predict(table)]
    assert [answer["similarity"] for answer in answers] == pytest.approx(similarities, abs=2e-3)
    with pytest.raises(UserError, match="give the columns text and image"):
        served.predict(pd.DataFrame([{"text": "without a photo"}]))
    with pytest.raises(UserError, match="cannot read the image"):
        served.predict(pd.DataFrame([{"text": "a", "image": "no/such.jpg"}]))


def test_card(run: Path, folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "feature-extraction" and data["metrics"] == ["recall"]
    (index,) = data["model-index"]
    assert {metric["name"] for result in index["results"] for metric in result["metrics"]} >= {"mean_recall"}
    fingerprint = json.loads((run / "description/data.json").read_text())[0]["fingerprint"]
    for part in (
        fingerprint,
        "measured after 3 steps".capitalize(),
        "| engine.zero_stage | 3 |",
        "| torch |",
        "commit",
    ):
        assert part in card.text, part
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md", ".yaml", ""):
            assert not file.is_file() or str(run.parent) not in file.read_text(), (
                f"a machine's path in {file}"
            )


def test_best_and_its_evaluation(run: Path, tmp_path: Path) -> None:
    """Without checkpoint= it is best/, measured when it was saved."""
    out = exported(run, tmp_path / "out")
    assert json.loads((out / "export.json").read_text())["weights"] == "best"
    model = PretrainedAlignmentModel.from_pretrained(out)
    assert state_fingerprint(model.alignment) == state_fingerprint(load_model(run / "best"))
    assert model.config.source["measured"] == "measured after 2 steps"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"checkpoint": "model"}, CheckpointError, r"has no model/ yet; its checkpoints are step-00000003"),
        (
            {"checkpoint": "step-00000001"},
            CheckpointError,
            "has no complete step-00000001; it has step-00000003",
        ),
        ({"run": "no/such"}, ConfigError, "point run to the folder that `out` named"),
        (
            {"run": "best", "checkpoint": "latest"},
            ConfigError,
            "is a model already; leave checkpoint=latest out",
        ),
    ],
)
def test_wrong_choices(
    run: Path, tmp_path: Path, settings: dict[str, str], error: type[UserError], message: str
) -> None:
    chosen = {"checkpoint": settings.get("checkpoint")}
    with pytest.raises(error, match=message):
        exported(run / settings.get("run", "."), tmp_path / "out", **chosen)
    assert not list(tmp_path.iterdir())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: next(run.glob("checkpoints/*/*rank_1*optim*")).unlink(), "cannot read the checkpoint"),
        (
            lambda run: _cut(next(run.glob("checkpoints/*/*rank_0*model_states.pt"))),
            "cannot read the checkpoint",
        ),
        (lambda run: shutil.rmtree(run / "description"), "start the run again with the same command"),
        (lambda run: next(run.glob("checkpoints/*/run_state.json")).write_text("{"), "cannot read"),
    ],
)
def test_damaged_checkpoints(run: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        exported(tmp_path / "run", tmp_path / "out", checkpoint="latest")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_replaced_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    exported(run, tmp_path / "out")  # an empty folder is free
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"changed or added since: notes.txt"):
        exported(run, tmp_path / "out")
    (tmp_path / "out/notes.txt").unlink()

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("promptmeup.export.export.write_atomically", full)
        with pytest.raises(ConfigError, match="No space left on device; make room"):
            exported(run, tmp_path / "out", checkpoint="latest")
    assert json.loads((tmp_path / "out/export.json").read_text())["weights"] == "best"
    exported(run, tmp_path / "out", checkpoint="latest")
    assert json.loads((tmp_path / "out/export.json").read_text())["weights"] == "step-00000003"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something that no export wrote"):
        exported(run, tmp_path / "other")


def test_last_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(ExportConfig, export, [f"run={run}", f"out={tmp_path}/out", "name=me/student"])
    assert capsys.readouterr().out.splitlines()[-1] == f"upload it with: hf upload me/student {tmp_path}/out"


def _finetune_on_rank(world: Any, config: FinetuneConfig) -> None:
    from promptmeup.extraction.finetune import finetune

    finetune(config)


def _write_corpus(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (70, 51), (200, 30, 30)).save(folder / "a.jpg")
    common = {"words": ["Ann", "Delgado", "in", "Leeds"], "image": "a.jpg"}
    entities = common | {"tags": ["B-PER", "I-PER", "O", "B-LOC"]}
    relation = common | {"head": [0, 2], "tail": [3, 4], "relation": "in"}
    other = common | {"head": [3, 4], "tail": [0, 2], "relation": "None"}
    for name, rows in (("entities", [entities, entities]), ("relations", [relation, other])):
        lines = [json.dumps({"id": f"{number}", **row}) for number, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_fine_tuned(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
) -> None:
    _write_corpus(tmp_path / "corpus")
    names = dict.fromkeys(("train", "val", "test"), f"{task}.jsonl")
    seeds = "[1,2]" if task == "entities" else "[1]"
    config = load(
        FinetuneConfig,
        None,
        [
            *(
                f"out={tmp_path}/run",
                f"model={folder}",
                "epochs=1",
                "batch=2",
                f"seeds={seeds}",
                "tracking.uri=null",
            ),
            *("data.kind=jsonl", f"data.task={task}", f"data.root={tmp_path}/corpus", "data.workers=0"),
            f"data.files={json.dumps(names)}",
        ],
    )
    run_ranks(_finetune_on_rank, 1, config, timeout=120)
    out = exported(tmp_path / "run", tmp_path / "mine", mlflow_model=task == "relations")
    expected, found = load_finetuned(tmp_path / "run"), load_finetuned(out)
    assert state_fingerprint(found.model) == state_fingerprint(expected.model)
    assert not any(str(tmp_path) in file.read_text() for file in (out / "config.json", out / "README.md"))
    card = ModelCard.load(out / "README.md")
    assert re.search(r"\| jsonl: [\w.]*/?corpus \|.*\b[0-9a-f]{64} \|", card.text), card.text
    assert card.data.to_dict()["metrics"][0] == ("f1" if task == "entities" else "accuracy")
    assert ("over 2 seeds: test" in card.text) == (task == "entities")
    if task == "entities":
        again = exported(tmp_path / "run/seed-1/best", tmp_path / "first")
        assert json.loads((again / "export.json").read_text())["run"] == "run/seed-1"
        monkeypatch.chdir(tmp_path)
        exec(snippet(card.text), {})
        assert capsys.readouterr().out.splitlines()[-1].startswith("[")
        with pytest.raises(ConfigError, match="only best is exported"):
            exported(tmp_path / "run", tmp_path / "none", checkpoint="latest")
        return
    served = mlflow.pyfunc.load_model(str(out / "mlflow_model"))
    row = {"text": "Ann Delgado in Leeds", "head": "Ann Delgado", "tail": "Leeds"}
    photo = str(tmp_path / "corpus/a.jpg")
    plain, seen = map(json.loads, served.predict(pd.DataFrame([row, row | {"image": photo}])))
    assert plain["relation"] in ("None", "in") and 0.5 <= plain["score"] <= 1
    assert seen["score"] != plain["score"]
    with pytest.raises(UserError, match="head 'Bob' does not occur in"):
        served.predict(pd.DataFrame([row | {"head": "Bob"}]))
    # one bad row of many costs no others
    again, bad = map(json.loads, served.predict(pd.DataFrame([row, row | {"image": "no/such.jpg"}])))
    assert again == plain
    assert bad == {"error": "the photo was not seen: there is no file no/such.jpg; give another one, or none"}
    with pytest.raises(UserError, match="give the columns head and tail"):
        served.predict(pd.DataFrame([{"text": "Ann"}]))
