"""--dry-run: what every command says it would do, while nothing is run, written or fetched."""

import os
import re
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from promptmeup.training.label import LabelRunConfig  # noqa: F401  (imports torch before the network is forbidden)
from tests.integration.conftest import TINY
from tests.support.real_data import ROOT

Shown = pytest.CaptureFixture[str]


def tree(*folders: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
    }


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, news_world: Path) -> Any:
    """Forbid the network, and compare the folders at the end."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = tree(tmp_path, news_world)
    yield
    assert tree(tmp_path, news_world) == before
    assert not dist.is_initialized()


def run(command: str, *arguments: str) -> int:
    old = sys.argv
    sys.argv = [command, *arguments]
    try:
        runpy.run_path(str(ROOT / command), run_name="__main__")
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        sys.argv = old
    return 0


def pretrain(*arguments: str, config: str = "tiny") -> int:
    return run("launch/pretrain.py", "--config", f"{ROOT}/configs/pretrain/{config}.yaml", *arguments)


def on(world: Path) -> list[str]:
    return [f"data.train={world}/packed/train", f"data.val={world}/packed/val"]


@pytest.mark.usefixtures("nothing_is_done")
def test_where_it_goes_on_from(
    news_world: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Shown
) -> None:
    run = tmp_path_factory.mktemp("earlier") / "run"
    (run / "checkpoints/step-00000004").mkdir(parents=True)
    (run / "checkpoints/step-00000004/run_state.json").touch()
    (run / "checkpoints/step-00000008.partial").mkdir()
    assert pretrain("--dry-run", *TINY, *on(news_world), f"out={run}", "steps=9") == 0
    assert f"run         {run}, 1 rank; goes on from step-00000004\n" in capsys.readouterr().out


def test_a_run_on_a_packed_corpus(news_world: Path, tmp_path: Path, capsys: Shown) -> None:
    overrides = [*TINY, *on(news_world), f"out={tmp_path}/run", "steps=null", "epochs=2"]
    assert pretrain("--dry-run=2", *overrides) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"out: {tmp_path}/run\n")  # the whole configuration comes first
    assert "global_batch: 16" in shown
    assert re.search(
        rf"corpus +{news_world}/packed/train: 60 photos, 240 pairs \(120 matched\), fingerprint \w+", shown
    )
    assert re.search(r"labels +[0-9a-f-]+: \d+ entities, 369 relations, width 32", shown)
    assert "steps       30 of 16 pairs each, 8 a rank, 2.00 epochs of 240 pairs" in shown
    assert re.search(r"parameters  1\.\d million: text 1\.\d, vision 0\.0, fusion 0\.0, heads 0\.\d", shown)
    assert "MFLOP a pair (40 tokens, the longest" in shown
    stages = re.findall(r"^(\d) (\*?) *(?:\d+\.\d\d *){6}$", shown, flags=re.MULTILINE)
    assert stages == [("0", ""), ("1", "*"), ("2", ""), ("3", "")]
    command = f"--config {ROOT}/configs/pretrain/tiny.yaml {' '.join(overrides)}"
    assert f"  srun --kill-on-bad-exit=0 --wait=60 python -u launch/pretrain.py {command}\n" in shown
    assert f"  deepspeed --num_gpus 2 launch/pretrain.py {command}\n" in shown
    assert (
        f"  sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 slurm/pretrain.sh "
        f"{ROOT}/configs/pretrain/tiny.yaml {' '.join(overrides)}\n" in shown
    )


@pytest.mark.usefixtures("nothing_is_done")
def test_the_papers_sizes_without_corpus_weights_or_network(capsys: Shown) -> None:
    assert pretrain("--dry-run=24", "global_batch=1536", "micro_batch=32", config="base") == 0
    shown = capsys.readouterr().out
    assert "packed/newsclippings/train: not there yet; shards/pack.py makes it" in shown
    assert (
        "of 1536 pairs each, 64 a rank in parts of 32; 10 epochs, whose length the corpus will say" in shown
    )
    assert "parameters  196.1 million: text 66.4, vision 85.8, fusion 43.1, heads 0.8" in shown
    assert "193 GFLOP a pair (64 tokens, the longest" in shown
    assert "TFLOP with what is computed again" in shown
    assert "sbatch --nodes=3 --ntasks-per-node=8 --gpus-per-node=8 slurm/pretrain.sh" in shown
    assert "deepspeed --hostfile HOSTS launch/pretrain.py" in shown


@pytest.mark.usefixtures("nothing_is_done")
def test_unknown_weights_are_said_and_the_rest_is_shown(capsys: Shown) -> None:
    assert pretrain("--dry-run", "model.text.weights=some/bert", config="base") == 0
    shown = capsys.readouterr().out
    assert "not known: model.text.weights: the sizes of some/bert are not known here" in shown
    assert "srun " in shown


@pytest.mark.usefixtures("nothing_is_done")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry-run", "global_batch=nonsense"), "'global_batch' = 'nonsense'"),
        (("--dry-run=3", "global_batch=16"), "a global batch of 16 pairs does not divide over 3 ranks"),
        (("--dry-run=many",), "'many' is no number of ranks: write --dry-run or --dry-run=8"),
        (
            ("--dry-run", "engine.precision=bf16"),
            "engine.precision = bf16 does not go with batch normalisation",
        ),
    ],
)
def test_a_wrong_run_still_fails(arguments: tuple[str, ...], message: str, capsys: Shown) -> None:
    assert pretrain(*arguments, config="small") == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_is_done")
def test_ranks_of_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert pretrain("--dry-run") == 0
    assert "32 pairs each, 8 a rank" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "3")  # the first rank speaks for all
    assert pretrain("--dry-run") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("nothing_is_done")
def test_every_pretraining_configuration(capsys: Shown) -> None:
    for path in sorted((ROOT / "configs/pretrain").glob("*.yaml")):
        assert pretrain("--dry-run", config=path.stem) == 0, path
        assert re.search(r"^[01] \* +\d+\.\d\d", capsys.readouterr().out, flags=re.MULTILINE), path


@pytest.mark.usefixtures("nothing_is_done")
def test_labels(news_world: Path, capsys: Shown) -> None:
    splits = f"splits=[{news_world}/packed/train,{news_world}/packed/missing]"
    config = f"{ROOT}/configs/label/tiny.yaml"
    assert (
        run("launch/label.py", "--config", config, splits, f"teacher={news_world}/teacher/model", "--dry-run")
        == 0
    )
    shown = capsys.readouterr().out
    assert re.search(rf"teacher +{news_world}/teacher/model, [\d.]+ MB of tensors", shown)
    assert re.search(
        rf"writes +{news_world}/packed/train/labels/NAME: \d+ objects, 60 photos, 0\.\d MB", shown
    )
    assert f"{news_world}/packed/missing: not there yet" in shown


@pytest.mark.usefixtures("nothing_is_done")
def test_packing(news_world: Path, capsys: Shown) -> None:
    config = f"{ROOT}/configs/pack/synthetic.yaml"
    world = [f"corpus.root={news_world}/corpus", f"out={news_world}/packed", "samples_per_shard=25"]
    assert run("shards/pack.py", "--config", config, *world, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert f"corpus  newsclippings, {news_world}/corpus: train, val" in shown
    assert "packed already: 60 photos in 3 shards" in shown
    assert run("shards/pack.py", "--config", config, *world, "out=elsewhere", "--dry-run") == 0
    assert "writes  elsewhere/train: from the start" in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_is_done")
def test_the_other_commands(news_world: Path, tmp_path: Path, capsys: Shown) -> None:
    model = f"{news_world}/teacher/model"
    assert run("launch/evaluate.py", f"model={model}", f"split={news_world}/packed/val", "--dry-run") == 0
    assert f"{news_world}/packed/val: 21 photos" in capsys.readouterr().out
    assert run("launch/export.py", f"run={news_world}/teacher", f"out={tmp_path}/out", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert re.search(rf"takes   {news_world}/teacher/(best|model), pretrained: [\d.]+ MB in 1 file\n", shown)
    assert f"writes  {tmp_path}/out\n" in shown
    config = f"{ROOT}/configs/finetune/twitter2015.yaml"
    assert run("launch/finetune.py", "--config", config, f"model={model}", "--dry-run=2") == 0
    shown = capsys.readouterr().out
    assert "starts from" in shown
    assert "runs/twitter2015/seed-3" in shown
    assert run("launch/compare.py", "first=a.jsonl", "second=b.jsonl", "--dry-run") == 0
    assert "a.jsonl: cannot be read: No such file or directory" in capsys.readouterr().out
    assert run("launch/predict.py", "--model", model, "--text", "Ada in London", "--dry-run") == 0
    assert "'Ada in London', no photo" in capsys.readouterr().out
    world = f"{ROOT}/configs/pack/synthetic_world.yaml"
    assert run("shards/synthesize.py", "--config", world, "--dry-run") == 0
    assert "num_train_images: 1500" in capsys.readouterr().out
    # the runs of before may have left it in the environment
    assert os.environ.get("MASTER_ADDR") is None
