"""Fine-tuning with one or several seeds, and what all of them say together."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from promptmeup.distributed.accelerated import join_accelerator
from promptmeup.distributed.world import World, barrier, broadcast_object, leave, say
from promptmeup.errors import CheckpointError
from promptmeup.extraction.data import Corpus, read_corpus
from promptmeup.extraction.report import describe_corpus, labels_line, spread, summary_row
from promptmeup.extraction.seed_run import FinetuneConfig, train_seed
from promptmeup.shard_format import write_json
from promptmeup.tracking.console import table
from promptmeup.tracking.mlflow_run import insist_on_mlflow
from promptmeup.training.checkpoint import complete
from promptmeup.training.claim import claimed
from promptmeup.training.lifeline import guarded
from promptmeup.training.signals import STOP_FILE, Orders, StopFlag, may_start


def finetune(config: FinetuneConfig) -> None:
    """Run `config` on this process's share of the world; goes on by itself where an earlier start stopped."""
    insist_on_mlflow(config.tracking.uri)
    stop = StopFlag()
    accelerator, world = join_accelerator(
        precision=config.precision,
        batch=config.batch,
        clipping=config.optim.gradient_clipping,
        timeout=config.timeout + 60,  # the lifeline comes first
    )
    try:
        _run(config, accelerator, world, stop)
        barrier(world)
    except SystemExit as told:
        barrier(world)  # as in pre-training: rank 0 has closed the tracker, and it alone has the code
        leave()
        sys.exit(told.code if world.is_main else 0)
    leave()


def _run(config: FinetuneConfig, accelerator: Accelerator, world: World, stop: StopFlag) -> None:
    if not may_start(config.out, world):
        say(world, f"{config.out / STOP_FILE} is there, so nothing is done; remove it to go on")
        return
    orders = Orders(config.out, stop=stop, world=world)
    corpus = read_corpus(config.data)
    say(world, describe_corpus(corpus))
    results = []
    for seed in config.seeds:
        folder = config.out / f"seed-{seed}"
        with claimed(folder, world=world):
            result = _finished(_identity(config, seed, corpus), folder, world)
            if result is None:
                with guarded(folder, world=world, timeout=config.timeout) as life:
                    result = train_seed(
                        config,
                        corpus=corpus,
                        seed=seed,
                        folder=folder,
                        accelerator=accelerator,
                        world=world,
                        orders=orders,
                        life=life,
                    )
        results.append(result)
    if world.is_main:
        _summarise(config.out, results)


def _finished(now: dict[str, Any], folder: Path, world: World) -> dict[str, Any] | None:
    """Return the result of a seed that is done, None where there is something left to do. Collective.

    Args:
        now: see `_identity`.

    Raises:
        CheckpointError: the folder has a run with other settings or other labels.
    """
    earlier, result = broadcast_object(_look(folder), world)
    if earlier is not None and earlier != now:
        raise CheckpointError(
            f"{folder} holds a run with other settings ({'; '.join(_changed(earlier, now))}): choose another out=, "
            "or delete the folder to begin again"
        )
    if earlier is None and world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "identity.json", now)
    return result


def _look(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return identity and result of the run in `folder`; no identity where a start came to nothing."""
    identity, result = folder / "identity.json", folder / "result.json"
    is_begun = result.exists() or (folder / "best").exists() or bool(complete(folder))
    return (
        json.loads(identity.read_text(encoding="utf-8")) if is_begun and identity.exists() else None,
        json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
    )


def _identity(config: FinetuneConfig, seed: int, corpus: Corpus) -> dict[str, Any]:
    """Return all that the result of one seed depends on, as it is read back from JSON."""
    left_out = {"out", "tracking", "seeds", "evaluation_batch", "save_every", "max_skipped", "timeout"}
    chosen = config.model_dump(mode="json", exclude=left_out)
    del chosen["data"]["workers"]
    labels = {split: found.sha256 for split, found in corpus.statistics.items()}
    return {**chosen, "seed": seed, "labels_sha256": labels}


def _changed(earlier: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name in dict.fromkeys([*earlier, *now]):
        old, new = earlier.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _changed(old, new, f"{prefix}{name}.")
        elif old != new:
            names.append(f"{prefix}{name} was {old!r} and is {new!r}")
    return names


def _summarise(out: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write out/result.json with mean and standard deviation over the seeds, link best/, print a table."""
    splits = {}
    rows = []
    for split in results[0]["splits"]:
        found = [result["splits"][split] for result in results]
        names = [name for name, value in found[0].items() if isinstance(value, float)]
        numbers = {name: spread([result.get(name, 0.0) for result in found]) for name in names}
        same = ("sentences", "cut_words", "images", "broken_tags", "labels_sha256")
        splits[split] = {"scores": numbers} | {name: found[0][name] for name in same}
        rows.append(summary_row(found))
    write_json(
        out / "result.json",
        {
            "task": results[0]["task"],
            "seeds": [result["seed"] for result in results],
            "val_f1": spread([result["val_f1"] for result in results]),
            "best_epochs": [result["best_epoch"] for result in results],
            "train_sentences": results[0]["train_sentences"],
            "splits": splits,
        },
    )
    winner = max(results, key=lambda result: result["val_f1"])
    link = out / "best"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(f"seed-{winner['seed']}") / "best", target_is_directory=True)
    seeds = (
        f"{len(results)} seeds, mean ± standard deviation"
        if len(results) > 1
        else f"seed {results[0]['seed']}"
    )
    print(f"{out}: {results[0]['task']}, {seeds}, in percent; best epoch by F1 on val")
    if rows:
        print(table(rows))
    for split in splits:
        print(labels_line(results[0]["splits"][split]))
