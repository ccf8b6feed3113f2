"""One seed of a fine-tuning: start, data, model, optimizer, loop, report, in adjacent lines."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field, field_validator
from torch import Tensor

from promptmeup.config import Config
from promptmeup.distributed.accelerated import prepare, stage_of, whole_weights, write_state
from promptmeup.distributed.world import World, barrier, broadcast_object, gpu_names
from promptmeup.errors import CheckpointError, NotFiniteError, TrainingError
from promptmeup.extraction.batches import (
    ExtractionBatch,
    evaluation_rows,
    load,
    steps_per_epoch,
    training_rows,
)
from promptmeup.extraction.data import Corpus, ExtractionData
from promptmeup.extraction.examples import Example
from promptmeup.extraction.folder import load_finetuned, save_finetuned
from promptmeup.extraction.inference import Prediction, has_images, model_inputs, predict
from promptmeup.extraction.metrics import flat
from promptmeup.extraction.optim import FinetuneOptimConfig, build_optimizer
from promptmeup.extraction.pictures import image_error
from promptmeup.extraction.report import MAIN_SCORES, score, write_report
from promptmeup.extraction.start import EncodersConfig, Start, open_start
from promptmeup.extraction.task import Split, TaskData, open_task
from promptmeup.models.extraction import (
    EntityConfig,
    EntityModel,
    RelationConfig,
    RelationHead,
    RelationModel,
)
from promptmeup.models.fused import describe_encoder
from promptmeup.records import RunState
from promptmeup.shard_format import write_json
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.settings import TrackedDataset, TrackingConfig
from promptmeup.tracking.system import NodeWatch
from promptmeup.tracking.tracker import Tracker
from promptmeup.training import checkpoint
from promptmeup.training.lifeline import Lifeline
from promptmeup.training.loop import Every, fit
from promptmeup.training.optim import rate_scale, set_rates
from promptmeup.training.seeds import step_seed
from promptmeup.training.signals import Order, Orders, exit_code
from promptmeup.training.skipped import Skipped


class FinetuneConfig(Config):
    """Fine-tuning on one corpus, with one or several seeds."""

    out: Path
    """folder: seed-N/ for each seed, result.json about all of them, best/ of the best one"""
    model: str
    """what to start from: a pre-training run, its best/ or model/, an exported or fine-tuned model, or a BERT (a
    folder, "package:NAME" or a hub name), which `encoders` goes with"""
    encoders: EncodersConfig = EncodersConfig()
    data: ExtractionData
    none: str | None = "None"
    """the relation that says that there is none, left out of precision, recall and F1; null: each relation is one"""
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    tracking: TrackingConfig = TrackingConfig()
    epochs: int = Field(ge=1)
    """at most; an epoch sees each training sentence once"""
    patience: int = Field(default=0, ge=0)
    """stop after this many epochs without a better F1 on val; 0: never"""
    batch: int = Field(default=32, gt=0)
    """sentences a step in the world"""
    evaluation_batch: int = Field(default=64, gt=0)
    """sentences of a rank at once in evaluations"""
    relation_head: RelationHead = "linear"
    """over the two marked states: linear, or the paper's MLP, which learns more slowly"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """before the head"""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1,), min_length=1)
    """a run each: order, dropout, head and, unless data.subset_seed is given, the subset"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """of forward and backward passes; auto: bf16 on a GPU, fp32 on a CPU"""
    save_every: int = Field(default=0, ge=0)
    """steps between two checkpoints, besides those after each epoch"""
    max_skipped: int = Field(default=5, ge=0)
    """most steps in a row whose loss is not finite: they change nothing; one more ends the run"""
    timeout: float = Field(default=1800.0, gt=0)
    """seconds that a step, an evaluation or a checkpoint may take; a run in which one process hangs ends after it"""

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed stands there twice, and would be one run that counts twice")
        return value


def train_seed(
    config: FinetuneConfig,
    *,
    corpus: Corpus,
    seed: int,
    folder: Path,
    accelerator: Accelerator,
    world: World,
    orders: Orders,
    life: Lifeline,
) -> dict[str, Any]:
    """Train, evaluate the best model and return the result. Collective.

    Raises:
        SystemExit: told to stop, after saving.
    """
    torch.manual_seed(seed)  # every rank starts from the same head
    start = open_start(config.model, encoders=config.encoders, text_only=config.data.text_only)
    image_size = start.vision.image_size if start.vision else None
    data = open_task(corpus, tokenizer=start.tokenizer, none=config.none, image_size=image_size, seed=seed)
    model = build(config, start, data)
    optimizer = build_optimizer(model, config=config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    wrapped, optimizer = prepare(accelerator, model, optimizer)
    vision = model.encoder.vision

    identity: dict[str, int | str] = {
        "seed": seed,
        "batch": config.batch,
        "sentences": len(data.train),
        "weights": start.fingerprint,
    }
    found = checkpoint.find(folder, order=identity, world=world)
    state = found.state if found else RunState(order=identity)
    zero_stage = stage_of(accelerator)
    layout = f"ZeRO {zero_stage} on {world.size} ranks" if zero_stage else "no ZeRO"
    if found and state.layout != layout:
        raise CheckpointError(
            f"{found.folder / found.tag} was written with {state.layout}, and this is {layout}; start it as it was, or "
            "choose another out= to begin again"
        )
    if found:
        accelerator.load_state(str(found.folder / found.tag))
    state.layout, started_at = layout, state.step
    skipped = Skipped(config.max_skipped, world)
    unread: set[Path] = set()
    """photos of training sentences that are there and could not be read by this rank"""
    said: set[Path] = set()
    """those of all ranks, as of the last evaluation"""
    per_epoch = steps_per_epoch(len(data.train), config.batch)
    total_steps = config.epochs * per_epoch
    share = {"rank": world.rank, "size": world.size}
    order = training_rows(
        len(data.train), batch=config.batch, seed=seed, start=state.step, stop=total_steps, **share
    )
    workers = 0 if data.pictures is None else config.data.workers
    batches = load(data.rows(data.train), order, workers=workers, pin=world.device.type == "cuda")

    def step(batch: ExtractionBatch, number: int) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(seed, step=number, rank=world.rank))
        scale = rate_scale(number, total_steps=total_steps, config=config.optim)
        set_rates(optimizer, peaks=peaks, scale=scale)
        if data.pictures is not None:
            photos = (data.train[row].post.image for row in batch.rows)
            unread.update(p for p, seen in zip(photos, has_images(batch), strict=True) if p and not seen)
        batch = batch.to(world.device)
        loss = wrapped(**model_inputs(batch, vision), weights=batch.weights_B).loss
        rate = torch.tensor(max(peaks) * scale)
        mean = accelerator.reduce(loss.detach(), "mean")
        if not mean.isfinite():
            return skip(
                number, rate, f"loss = {mean.item()}: sentences of this rank: {' '.join(batch.keys[:8])}"
            )
        accelerator.backward(loss)
        # measured where it is not clipped, too; it is the world's, so the ranks agree
        norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.gradient_clipping or math.inf)
        # DeepSpeed has made its step by now, and looks after itself
        if accelerator.state.deepspeed_plugin is None and not math.isfinite(norm):
            optimizer.zero_grad()
            return skip(number, rate, f"gradient norm = {float(norm)}")
        skipped.end()
        optimizer.step()
        optimizer.zero_grad()
        found = {"loss": mean, "lr": rate}
        return found if norm is None else found | {"gradient_norm": torch.as_tensor(norm)}

    def skip(number: int, rate: Tensor, what: str) -> dict[str, Tensor]:
        state.skipped += 1
        tracker.event("skipped", number + 1, why=skipped.insist(number + 1, NotFiniteError(what)))
        return {"lr": rate}

    def log(number: int, metrics: dict[str, float], seconds: float) -> None:  # noqa: ARG001
        # what the loop counts as pairs are sentences here
        speed = {"sentences_per_second": metrics.pop("pairs_per_second")}
        tracker.step(number, metrics | speed | {"epoch": number / per_epoch})

    def predictions(of: Any, examples: Sequence[Example], *, scores: bool = False) -> list[Prediction]:
        mine = predict(
            of,
            examples,
            rows=data.rows(examples),
            order=evaluation_rows(examples, batch=config.evaluation_batch, **share),
            labels=data.labels,
            vision=vision,
            crf=of.crf if scores and data.task == "entities" else None,
            device=world.device,
            workers=workers,
        )
        everyone = sorted(gather_object(mine) if world.size > 1 else mine, key=lambda pair: pair[0])
        assert [position for position, _ in everyone] == list(range(len(examples)))
        return [prediction for _, prediction in everyone]

    def evaluate() -> bool:
        if 0 < state.step == state.skipped:
            raise TrainingError(
                f"none of the {state.step} steps so far had a loss that is finite, so nothing was learnt: lower "
                f"optim.lr, or look at what it starts from ({config.model})"
            )
        scores = flat(score(predictions(wrapped, data.val.examples), none=data.none))
        state.epoch = state.step // per_epoch
        _track(tracker, state.step, "val", scores)
        warn_of_photos()
        state.stale += 1
        if scores["f1"] > state.best:
            state.best, state.stale = scores["f1"], 0
            weights = whole_weights(accelerator, wrapped, world=world)
            if world.is_main:
                model.config.source |= {"epoch": state.epoch, "val_f1": round(state.best, 6)}
                save_finetuned(folder / "best", model, state=weights, tokenizer=start.tokenizer)
        return is_enough()

    def warn_of_photos() -> None:
        found = set(gather_object(list(unread))) if world.size > 1 else unread
        if not found <= said:
            said.update(found)
            text = (
                f"{len(said)} photos of the training split cannot be read, and their sentences are trained as if they "
                f"had none: {image_error(min(said))}"
            )
            tracker.event("warning", state.step, text=text)

    def is_enough() -> bool:
        return 0 < config.patience <= state.stale

    def write(*, folder: Path, tag: str) -> None:
        write_state(accelerator, wrapped, folder / tag)

    def save() -> str | None:
        problem = checkpoint.save(write, run=folder, state=state, world=world, keep=1)
        if problem:
            tracker.event("warning", state.step, text=f"{problem}; training goes on")
        return problem

    tracker = Tracker.off()
    if world.is_main:
        tracker = Tracker(folder, config=config.tracking, total_steps=total_steps)
    life.abandon, life.told = tracker.finish, tracker.told_to_stop
    node_seconds = config.tracking.system_seconds if world.local_rank == 0 else 0
    with tracker, NodeWatch(folder, seconds=node_seconds), life.reporting():
        tracker.start(
            config=config.model_copy(update={"seeds": (seed,)}),
            environment=environment(command=sys.argv, gpus=gpu_names(), world_size=world.size),
            step=state.step,
            datasets=_datasets(config.data, data),
            parent=start.run,
        )
        for text in (*life.warnings, *(found.damaged if found else ())):
            tracker.event("warning", state.step, text=text)
        wrapped.train()
        # a signal that comes with the last step of an epoch saves before the epoch is evaluated
        was_evaluated = state.step % per_epoch or state.epoch == state.step // per_epoch
        is_over = is_enough() if was_evaluated else evaluate()
        ended = (
            Order.GO
            if is_over
            else fit(
                step,
                batches,
                state=state,
                total_steps=total_steps,
                global_batch=config.batch,
                every=Every(config.tracking.log_every, per_epoch, config.save_every, save_evaluated=True),
                log=log,
                evaluate=evaluate,
                save=save,
                orders=orders,
                note=life.note,
            )
        )
        life.note("end", state.step)
        accelerator.free_memory()
        if ended is not Order.GO:
            tracker.event("stopped", state.step, by=orders.reason())
            tracker.finish("KILLED")
            sys.exit(exit_code(ended, gained=state.step > started_at))
        barrier(world)
        best = load_finetuned(folder / "best", device=world.device)
        result: dict[str, Any] = {
            "task": data.task,
            "seed": seed,
            "val_f1": best.model.config.source["val_f1"],
            "best_epoch": best.model.config.source["epoch"],
            "epochs": state.epoch,
            "train_sentences": len(data.train),
            "unreadable_train_images": len(said),
            "splits": {},
        }
        for split in data.splits:
            predicted = predictions(best.model, split.examples, scores=True)
            if world.is_main:
                result["splits"][split.name] = _write_split(
                    folder, split, predicted, data, tracker, state.step
                )
        if world.is_main:
            write_json(folder / "result.json", result)
            tracker.add_artifact(folder / "result.json")
    return broadcast_object(result, world)


def build(config: FinetuneConfig, start: Start, data: TaskData) -> EntityModel | RelationModel:
    """Return the model: the encoder's weights, and a new head."""
    start.encoder.resize_vocabulary(len(start.tokenizer))
    facts = {
        "model": start.source,
        "weights": start.fingerprint,
        "data": f"{config.data.kind}: {config.data.root}",
        "labels_sha256": data.sha256,
        "train_sentences": len(data.train),
    }
    settings = {
        "encoder": describe_encoder(start.encoder, vision=start.vision),
        "labels": data.labels,
        "dropout": config.dropout,
        "max_tokens": config.data.max_tokens,
        "max_crops": config.data.max_crops,
        "eval_mode": config.data.eval_mode,
        "source": facts,
    }
    model: EntityModel | RelationModel
    if data.task == "entities":
        model = EntityModel(EntityConfig(**settings))
    else:
        model = RelationModel(RelationConfig(none=data.none, head=config.relation_head, **settings))
    model.encoder.load_state_dict(start.encoder.state_dict())
    return model


def _write_split(
    folder: Path, split: Split, found: list[Prediction], data: TaskData, tracker: Tracker, step: int
) -> dict[str, Any]:
    result, files = write_report(
        folder,
        split=split.name,
        predictions=found,
        statistics=split.statistics,
        cut_words=split.cut_words,
        labels=data.labels,
        none=data.none,
        text_only=data.pictures is None,
    )
    _track(tracker, step, split.name, {n: value for n, value in result.items() if isinstance(value, float)})
    for file in files:
        tracker.add_artifact(file)
    return result


def _track(tracker: Tracker, step: int, split: str, scores: Mapping[str, float]) -> None:
    """Report all scores, and print those that people look at first."""
    named = {f"{split}/{name}": value for name, value in scores.items()}
    tracker.evaluation(step, named, shown=[f"{split}/{name}" for name in MAIN_SCORES])


def _datasets(config: ExtractionData, data: TaskData) -> list[TrackedDataset]:
    named = [("train", data.train_statistics, "training"), ("val", data.val.statistics, "validation")]
    named += [(split.name, split.statistics, "evaluation") for split in data.splits if split.name != "val"]
    return [
        TrackedDataset(
            name=f"{config.root.name}/{name}",
            digest=next(iter(statistics.sha256.values()))[:16],
            source=str(config.root),
            context=context,
        )
        for name, statistics, context in named
    ]
