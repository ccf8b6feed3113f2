"""A pre-training run, built where everyone can see it: data, model, engine, loop, in adjacent lines."""

import math
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from promptmeup.config import Config
from promptmeup.data.damage import report_to, watched
from promptmeup.data.loader import train_batches
from promptmeup.data.opening import fetch_labels, open_split
from promptmeup.data.reader import LabelReader, PackedSplit
from promptmeup.data.settings import DataConfig
from promptmeup.data.sources import Sources, shares_of
from promptmeup.data.text import TextTokenizer
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import (
    EngineConfig,
    build_engine,
    compute_dtype,
    full_weights,
    layout,
    load_engine,
    save_engine,
)
from promptmeup.distributed.reading import read_whole
from promptmeup.distributed.resharding import give_optimizer, give_weights
from promptmeup.distributed.world import (
    World,
    barrier,
    gpu_names,
    highest,
    join,
    leave,
    ranks_on_node,
    say,
    share_cores,
    warn,
)
from promptmeup.errors import ConfigError, NotFiniteError
from promptmeup.losses.total import LossConfig
from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.saving import load_matching, save_description, save_model
from promptmeup.models.text import load_tokenizer
from promptmeup.prompts.bank import load_banks
from promptmeup.records import Banks, Batch, RunState
from promptmeup.shard_format import finished_labels, labels_folder, read_manifest, write_json
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.settings import TrackedDataset, TrackingConfig
from promptmeup.tracking.system import NodeWatch
from promptmeup.tracking.tracker import Tracker
from promptmeup.training import checkpoint
from promptmeup.training.crash import put_aside
from promptmeup.training.evaluation import evaluate_retrieval
from promptmeup.training.lifeline import Lifeline
from promptmeup.training.loop import Every, fit
from promptmeup.training.optim import OptimConfig, build_optimizer, rate_scale, set_rates
from promptmeup.training.seeds import step_seed
from promptmeup.training.signals import STOP_FILE, Order, Orders, StopFlag, exit_code, may_start
from promptmeup.training.skipped import Skipped
from promptmeup.training.stall import StallMeter
from promptmeup.training.step import train_step
from promptmeup.training.throughput import Throughput
from promptmeup.training.watch import Watch


class PretrainConfig(Config):
    """One pre-training run; a teacher is a run with `model.fusion: false` and the image-text loss alone."""

    out: Path
    """run folder: configuration, journal, description/ (the model without its weights, and the data), checkpoints,
    model/ (the last) and best/ (by retrieval)"""
    data: DataConfig
    model: ModelConfig
    start_from: Path | None = None
    """a saved model (RUN/model) whose fitting tensors replace the initial ones, such as the teacher"""
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()
    global_batch: int = Field(gt=1)
    """pairs per step in the world; every rank takes an equal part"""
    micro_batch: int | None = Field(default=None, gt=0)
    """most pairs of a rank in the model at once, where its part of the batch does not fit: the same step (gradient
    caching), for one more forward pass"""
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    """length of the run: either steps or epochs"""
    evaluate_every: int = Field(default=0, ge=0)
    """steps between two evaluations on data.val; 0: only at the end"""
    save_every: int = Field(default=500, ge=0)
    """steps between two checkpoints; 0: only at the end or when stopped"""
    keep_checkpoints: int = Field(default=2, gt=0)
    """newest ones that stay; the best model stays in best/ besides"""
    max_skipped: int = Field(default=5, ge=0)
    """most steps in a row whose loss or gradient is not finite: they change nothing; one more ends the run"""
    peak_tflops: float | None = Field(default=None, gt=0)
    """what one GPU can do in the run's precision, for MFU; None: as its data sheet says, if its name is known"""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.data.image.size != self.model.vision.image_size:
            raise ValueError(
                f"data.image.size = {self.data.image.size} and model.vision.image_size = "
                f"{self.model.vision.image_size} must be equal"
            )
        fused = [n for n, w in self.loss.weights.model_dump().items() if w > 0 and n != "image_text"]
        if fused and not self.model.fusion:
            raise ValueError(
                f"model.fusion is false, but these losses need the fusion half: {', '.join(fused)}; "
                "set their loss.weights to 0, or model.fusion to true"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether a loss on soft labels is switched on."""
        return self.loss.weights.object_entity > 0 or self.loss.weights.image_relation > 0


def choose_labels(split: Path, name: str | None) -> Path:
    """Return the folder of soft labels to train on: the one named, else the only finished one of this corpus.

    Raises:
        ConfigError: none, or several to choose from.
    """
    corpus = read_manifest(split).fingerprint
    found = finished_labels(split, corpus=corpus)
    names = [path.name for path in found]
    if name is not None and name not in names:
        raise ConfigError(
            f"data.labels = {name}: {split} has no finished labels of that name; "
            f"{'it has ' + ', '.join(names) if names else 'run launch/label.py'}"
        )
    if not found:
        finished = len(finished_labels(split))
        old = f" ({finished} of what it was before its boxes or entities were replaced)" if finished else ""
        raise ConfigError(
            f"{split} has no soft labels{old}: run launch/label.py first, or switch the losses off that need "
            "them with loss.weights.object_entity=0 loss.weights.image_relation=0"
        )
    if name is None and len(found) > 1:
        raise ConfigError(
            f"{split} has {len(found)} sets of soft labels ({', '.join(names)}): choose one with data.labels=NAME"
        )
    return labels_folder(split, name) if name is not None else found[0]


def pretrain(config: PretrainConfig) -> None:
    """Run `config` on this process's share of the world; resumes by itself from `config.out`."""
    stop = StopFlag()
    world = join(timeout=timedelta(seconds=config.engine.timeout))
    share_cores(world)
    try:
        code = train(config, world, stop)
        barrier(
            world
        )  # rank 0 closes the tracker; srun kills what still runs when one rank exits with a code
    finally:
        leave()
    sys.exit(code if world.is_main else 0)


def train(config: PretrainConfig, world: World, stop: StopFlag | None = None) -> int:
    """Train on one rank of `world`; return the exit code: 0 when done or told to end, else see `signals`."""
    if not may_start(config.out, world):
        say(world, f"{config.out / STOP_FILE} is there, so nothing is done; remove it to go on")
        return 0
    with Lifeline(config.out, world=world, timeout=config.engine.timeout) as life:
        orders = Orders(config.out, stop=stop or StopFlag(), world=world)
        return _train(config, world, orders=orders, life=life)


def _train(config: PretrainConfig, world: World, *, orders: Orders, life: Lifeline) -> int:
    crashed = put_aside(config.out) if world.is_main else None
    torch.manual_seed(config.seed)  # every rank starts from the same random weights

    sources, banks = open_sources(config, world)
    val = open_split(config.data.val, config.data.cache) if config.data.val else None
    stream = sources.stream

    hf_tokenizer = load_tokenizer(config.model.text)
    tokenizer = TextTokenizer(hf_tokenizer)
    model = build(config, banks)
    vision = model.vision
    optimizer = build_optimizer(
        model.to(world.device), backbones=model.backbone_modules(), config=config.optim
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    dtype = compute_dtype(config.engine, model, world.device)
    found = checkpoint.find(config.out, order=sources.identity, world=world, warn=warn)
    state = found.state if found else RunState(order=sources.identity)
    own_layout = layout(zero_stage=config.engine.zero_stage, ranks=world.size, dtype=dtype)
    moved_from = state.layout if found and state.layout != own_layout else None
    whole = read_whole(found.folder, found.tag) if found and moved_from and world.is_main else None
    if moved_from:
        give_weights(whole, model, world=world)
    engine = build_engine(
        model,
        optimizer=optimizer,
        config=config.engine,
        batch=config.global_batch // world.size,
        world=world,
    )
    if moved_from:
        give_optimizer(whole, engine, world=world)
    elif found:
        load_engine(engine, folder=found.folder, tag=found.tag)
    del whole
    state.layout, started_at = own_layout, state.step
    if world.is_main:
        _describe(config.out / "description", model=model, tokenizer=hf_tokenizer, sources=sources, val=val)
    pairs_left = (config.epochs or 0) * stream.num_pairs - state.pairs_consumed
    total_steps = config.steps or state.step + max(0, math.ceil(pairs_left / config.global_batch))
    batches = train_batches(
        sources,
        config=config.data,
        tokenizer=tokenizer,
        start_pairs=state.pairs_consumed,
        global_batch=config.global_batch,
        rank=world.rank,
        size=world.size,
        device=world.device,
    )
    batches = watched(
        batches,
        limit=config.data.max_damaged,
        report=report_to(config.out / "damaged.jsonl", rank=world.rank, warn=warn),
    )
    exchange, watch, skipped = WorldExchange(world), Watch(), Skipped(config.max_skipped, world)
    stall = StallMeter(
        workers=config.data.workers, cores=len(os.sched_getaffinity(0)), ranks=ranks_on_node(world)
    )
    measure = partial(
        evaluate_retrieval,
        engine,
        config=config.data,
        tokenizer=tokenizer,
        mean=vision.mean,
        std=vision.std,
        batch=max(32, config.global_batch // world.size),
        dtype=dtype,
        world=world,
    )

    throughput = Throughput(
        model,
        losses=config.loss,
        banks=banks,
        rows=config.global_batch // world.size,
        max_objects=config.data.max_objects,
        dtype=dtype,
        world=world,
        peak=config.peak_tflops,
    )

    def step(batch: Batch, number: int) -> dict[str, Tensor]:
        throughput.note(batch)
        torch.manual_seed(step_seed(config.seed, step=number, rank=world.rank))
        scale = rate_scale(number, total_steps=total_steps, config=config.optim)
        set_rates(engine.optimizer, peaks=peaks, scale=scale)
        try:
            metrics = train_step(
                engine,
                batch.to(world.device),
                banks=banks,
                losses=config.loss,
                dtype=dtype,
                exchange=exchange,
                micro_batch=config.micro_batch,
            )
        except NotFiniteError as error:
            state.skipped += 1
            tracker.event("skipped", number + 1, why=skipped.insist(number + 1, error))
            return {"lr": torch.tensor(max(peaks) * scale)}
        skipped.end()
        return metrics | {"lr": torch.tensor(max(peaks) * scale)} | _gradient_norm(engine)

    def log(number: int, metrics: dict[str, float], seconds: float) -> None:
        for warning in watch.training(metrics):
            tracker.event("warning", number, text=warning)
        renamed = {"loss" if name == "loss/total" else name: value for name, value in metrics.items()}
        # the ranks wait for each other: the slowest one's data is what the world waits for
        wait = highest(metrics["data_wait"], world)
        epoch = state.pairs_consumed / stream.num_pairs
        rates = throughput.rates(metrics["pairs_per_second"]) if world.is_main else {}
        tracker.step(number, renamed | rates | {"data_wait": wait, "epoch": epoch})
        verdict = stall.note(wait, seconds)
        if verdict:
            tracker.event("stall", number, verdict=verdict)

    def evaluate() -> bool:
        if val is None:
            return False
        found = measure(val)
        tracker.evaluation(state.step, found)
        for warning in watch.evaluation(found):
            tracker.event("warning", state.step, text=warning)
        if found["mean_recall"] > state.best:
            state.best = found["mean_recall"]
            try:
                _export(engine, config.out / "best", model=model, tokenizer=hf_tokenizer, world=world)
            except OSError as error:  # a full disk, for one; the model is in the checkpoints too
                text = f"cannot write {config.out / 'best'}: {error.strerror}; training goes on"
                tracker.event("warning", state.step, text=text)
        return False

    def save() -> str | None:
        state.epoch = stream.epoch(state.pairs_consumed)
        write = partial(save_engine, engine)
        problem = checkpoint.save(
            write, run=config.out, state=state, world=world, keep=config.keep_checkpoints
        )
        if problem:
            tracker.event("warning", state.step, text=f"{problem}; training goes on")
        else:
            tracker.event("checkpoint", state.step, folder=str(config.out / "checkpoints"))
        return problem

    tracker = Tracker.off()
    if world.is_main:
        tracker = Tracker(config.out, config=config.tracking, total_steps=total_steps)
    life.abandon, life.told = tracker.finish, tracker.told_to_stop
    node_seconds = config.tracking.system_seconds if world.local_rank == 0 else 0
    with tracker, NodeWatch(config.out, seconds=node_seconds), life.reporting():
        tracker.start(
            config=config,
            environment=environment(command=sys.argv, gpus=gpu_names(), world_size=world.size),
            step=state.step,
            datasets=_datasets(sources.splits, val),
        )
        if crashed:
            tracker.event("warning", state.step, text=f"the last start ended badly: {crashed}")
        if moved_from:
            tracker.event("moved", state.step, checkpoint=moved_from, run=own_layout)
        for gallery in _galleries(sources.splits):
            tracker.add_artifact(gallery)
        if sources.labels is not None:
            tracker.labels(state.step, sources.labels[0].manifest.statistics)
        engine.train()
        order = fit(
            step,
            batches,
            state=state,
            total_steps=total_steps,
            global_batch=config.global_batch,
            every=Every(config.tracking.log_every, config.evaluate_every, config.save_every),
            log=log,
            evaluate=evaluate,
            save=save,
            orders=orders,
            note=life.note,
        )
        life.note("end", state.step)
        tracker.event("stall_meter", state.step, data_wait=round(stall.share, 4), verdict=stall.verdict())
        if order is Order.GO:
            _export(engine, config.out / "model", model=model, tokenizer=hf_tokenizer, world=world)
        else:
            tracker.event("stopped", state.step, by=orders.reason())
            tracker.finish("KILLED")
    return exit_code(order, gained=state.step > started_at)


def open_sources(config: PretrainConfig, world: World) -> tuple[Sources, Banks | None]:
    """Open the corpora of a run, with their soft labels and the banks of these where a loss needs them."""
    data = config.data
    splits = [open_split(path, data.cache) for path in (data.train, *(part.path for part in data.blend))]
    readers, banks = None, None
    if config.needs_labels:
        fetch_labels(splits[0], data.labels)
        folders = [choose_labels(splits[0].folder, data.labels)]
        bank = folders[0].name.rsplit("-", 1)[0]
        for split in splits[1:]:
            name = f"{bank}-{split.manifest.fingerprint[:8]}"
            fetch_labels(split, name)
            folders.append(choose_labels(split.folder, name))
        found = load_banks(folders[0], corpus=splits[0].manifest.fingerprint)
        banks = Banks(found.entities_KD.to(world.device), found.relations_KD.to(world.device))
        readers = tuple(LabelReader(folder, split) for folder, split in zip(folders, splits, strict=True))
    shares = shares_of([part.share for part in data.blend])
    return Sources(tuple(splits), shares, config.seed, data.window, data.pairs, readers), banks


def build(config: PretrainConfig, banks: Banks | None) -> AlignmentModel:
    """Return the model with its initial weights, on the CPU."""
    shapes = {}
    if config.model.fusion:
        # without soft labels the two heads are never trained; any shape will do
        any_shape = (config.model.width, config.model.width)
        num_entities, entity_width = banks.entities_KD.shape if banks else any_shape
        num_relations, relation_width = banks.relations_KD.shape if banks else any_shape
        shapes = {
            "entity_width": entity_width,
            "relation_width": relation_width,
            "num_entities": num_entities,
            "num_relations": num_relations,
        }
    model = build_model(config.model, **shapes)
    if config.start_from is not None:
        load_matching(model, config.start_from)
    return model


def _export(engine: Any, folder: Path, *, model: AlignmentModel, tokenizer: Any, world: World) -> None:
    """Write the whole model for teachers, fine-tuning and evaluation; collective under ZeRO-3."""
    weights = full_weights(engine, world=world)
    if world.is_main:
        save_model(folder, model, tokenizer=tokenizer, state=weights)


def _describe(
    folder: Path, *, model: AlignmentModel, tokenizer: Any, sources: Sources, val: PackedSplit | None
) -> None:
    """Write at the start what makes a model of any checkpoint, without the encoders' first weights and the data."""
    save_description(folder, model, tokenizer=tokenizer)
    splits = [*sources.splits, *([val] if val else [])]
    facts = [
        {
            "name": dataset.name,
            "fingerprint": dataset.digest,
            "use": dataset.context,
            "photos": split.manifest.samples,
            "pairs": split.manifest.pairs,
            "labels": reader.manifest.bank if reader else None,
        }
        for dataset, split, reader in zip_longest(
            _datasets(sources.splits, val), splits, sources.labels or ()
        )
    ]
    write_json(folder / "data.json", facts)


def _gradient_norm(engine: Any) -> dict[str, Tensor]:
    norm = engine.get_global_grad_norm()
    return {} if norm is None else {"gradient_norm": torch.as_tensor(norm)}


def _galleries(splits: Sequence[PackedSplit]) -> list[Path]:
    """Return the pages of shards/gallery.py that lie in or beside the splits."""
    folders = [folder for split in splits for folder in (split.folder, split.folder.parent)]
    return [path for folder in dict.fromkeys(folders) if (path := folder / "gallery.html").is_file()]


def _datasets(training: Sequence[PackedSplit], val: PackedSplit | None) -> list[TrackedDataset]:
    splits = [(split, "training") for split in training] + ([(val, "validation")] if val else [])
    return [
        TrackedDataset(
            name="/".join(packed.location.split("/")[-2:]),
            digest=packed.manifest.fingerprint,
            source=packed.location,
            context=context,
        )
        for packed, context in splits
    ]
