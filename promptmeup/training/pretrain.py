"""A pre-training run, built where everyone can see it: data, model, engine, loop, in adjacent lines."""

import math
import os
import sys
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptmeup.data.damage import report_to, watched
from promptmeup.data.loader import train_batches
from promptmeup.data.opening import open_split
from promptmeup.data.text import TextTokenizer
from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.engine import (
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
    broadcast_object,
    gpu_names,
    highest,
    join,
    leave,
    ranks_on_node,
    say,
    share_cores,
    warn,
)
from promptmeup.errors import NotFiniteError, TrainingError
from promptmeup.losses.cost import bank_shapes
from promptmeup.models.alignment import AlignmentModel, build_model, prompt_shapes
from promptmeup.models.layers import checkpoint_layers, compile_layers
from promptmeup.models.saving import load_matching, save_model
from promptmeup.models.text import load_tokenizer
from promptmeup.records import Banks, Batch, RunState
from promptmeup.tracking.mlflow_run import insist_on_mlflow
from promptmeup.tracking.provenance import environment
from promptmeup.tracking.system import NodeWatch
from promptmeup.tracking.tracker import Tracker
from promptmeup.training import checkpoint
from promptmeup.training.claim import claimed
from promptmeup.training.evaluation import encode_split, measure
from promptmeup.training.inputs import (
    datasets,
    galleries,
    open_sources,
    untrainable_matching,
    write_description,
)
from promptmeup.training.lifeline import Lifeline, guarded
from promptmeup.training.loop import Every, fit
from promptmeup.training.optim import build_optimizer, rate_scale, set_rates
from promptmeup.training.seeds import step_seed
from promptmeup.training.settings import PretrainConfig
from promptmeup.training.signals import STOP_FILE, Order, Orders, StopFlag, exit_code, may_start
from promptmeup.training.skipped import Skipped
from promptmeup.training.stall import StallMeter
from promptmeup.training.step import train_step
from promptmeup.training.throughput import Throughput
from promptmeup.training.too_small import memory_for, writing
from promptmeup.training.watch import Watch

_CHECKPOINTS_STAY = "it goes on from its last checkpoint"


def pretrain(config: PretrainConfig) -> None:
    """Run `config` on this process's share of the world; resumes by itself from `config.out`."""
    insist_on_mlflow(config.tracking.uri)
    stop = StopFlag()
    # NCCL ends a process that waits too long without a word: the lifeline comes first
    world = join(timeout=timedelta(seconds=config.engine.timeout + 60))
    share_cores(world)
    code = train(config, world, stop)
    # rank 0 has closed the tracker then: launchers kill what still runs when one rank exits with a code
    barrier(world)
    # after an exception nobody leaves: NCCL would wait for ranks that are gone
    leave()
    sys.exit(code if world.is_main else 0)


def train(config: PretrainConfig, world: World, stop: StopFlag | None = None) -> int:
    """Train on one rank of `world`; return the exit code: 0 when done or told to end, else see `signals`."""
    if not may_start(config.out, world):
        say(world, f"{config.out / STOP_FILE} is there, so nothing is done; remove it to go on")
        return 0
    # first the claim: a report of this start's end would end the ranks of another one
    with (
        claimed(config.out, world=world),
        guarded(config.out, world=world, timeout=config.engine.timeout) as life,
    ):
        orders = Orders(config.out, stop=stop or StopFlag(), world=world)
        return _train(config, world, orders=orders, life=life)


def _train(config: PretrainConfig, world: World, *, orders: Orders, life: Lifeline) -> int:
    torch.manual_seed(config.seed)  # every rank starts from the same random weights

    sources, banks = open_sources(config, world)
    val = open_split(config.data.val, config.data.cache) if config.data.val else None
    stream = sources.stream

    hf_tokenizer = load_tokenizer(config.model.text)
    tokenizer = TextTokenizer(hf_tokenizer)
    found = checkpoint.find(config.out, order=sources.identity, world=world)
    model = build(config, banks, world if found is None else None)
    vision = model.vision
    optimizer = build_optimizer(
        model.to(world.device), backbones=model.backbone_modules(), config=config.optim
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    dtype = compute_dtype(config.engine, model, world.device)
    state = found.state if found else RunState(order=sources.identity)
    stage = config.engine.stage(ranks=world.size, dtype=dtype)
    own_layout = layout(zero_stage=stage, ranks=world.size, dtype=dtype)
    moved_from = state.layout if found and state.layout != own_layout else None
    whole = read_whole(found.folder, found.tag) if found and moved_from and world.is_main else None
    if moved_from:
        give_weights(whole, model, world=world)
    checkpoint_layers(model, config.engine.activation_checkpointing)
    if config.engine.compile:
        compile_layers(model)
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
        if problem := untrainable_matching(config, sources):
            warn(problem)
        with writing(config.out, error=TrainingError, stays=_CHECKPOINTS_STAY):
            write_description(
                config.out / "description", model=model, tokenizer=hf_tokenizer, sources=sources, val=val
            )
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
    exchange, skipped = WorldExchange(world), Skipped(config.max_skipped, world)
    watch = Watch(learns_temperature=config.model.learn_temperature)
    stall = StallMeter(
        workers=config.data.workers, cores=len(os.sched_getaffinity(0)), ranks=ranks_on_node(world)
    )
    encode = partial(
        encode_split,
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
        micro_batch=config.micro_batch,
        peak=config.peak_tflops,
    )

    def step(batch: Batch, number: int) -> dict[str, Tensor]:
        if world.is_main:
            throughput.note(batch)
        torch.manual_seed(step_seed(config.seed, step=number, rank=world.rank))
        scale = rate_scale(number, total_steps=total_steps, config=config.optim)
        set_rates(engine.optimizer, peaks=peaks, scale=scale)
        try:
            with memory_for(min(len(batch), config.micro_batch or len(batch))):
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
        found = measure(encode(val))
        state.evaluated_at = state.step
        tracker.evaluation(state.step, found)
        for warning in watch.evaluation(found):
            tracker.event("warning", state.step, text=warning)
        if broadcast_object(found["mean_recall"] > state.best, world):  # processors differ in the last digit
            state.best = found["mean_recall"]
            try:
                _export(engine, config.out / "best", model=model, tokenizer=hf_tokenizer, world=world)
            except OSError as error:  # a full disk, for one; the model is in the checkpoints too
                tracker.event("warning", state.step, text=f"{error}; training goes on")
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
            datasets=datasets(sources.splits, val),
        )
        for text in (*life.warnings, *(found.damaged if found else ())):
            tracker.event("warning", state.step, text=text)
        if moved_from:
            tracker.event("moved", state.step, checkpoint=moved_from, run=own_layout)
        for gallery in galleries(sources.splits):
            tracker.add_artifact(gallery)
        if sources.labels is not None:
            tracker.labels(state.step, sources.labels[0].manifest.statistics)
        engine.train()
        # a signal that came with this step saved before the evaluation that was due
        is_due = config.evaluate_every > 0 and state.step > 0 and state.step % config.evaluate_every == 0
        if is_due and state.evaluated_at != state.step < total_steps:
            life.note("evaluation", state.step)
            evaluate()
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
            with writing(config.out, error=TrainingError, stays=_CHECKPOINTS_STAY):
                _export(engine, config.out / "model", model=model, tokenizer=hf_tokenizer, world=world)
        else:
            tracker.event("stopped", state.step, by=orders.reason())
            tracker.finish("KILLED")
    return exit_code(order, gained=state.step > started_at)


def build(config: PretrainConfig, banks: Banks | None, world: World | None = None) -> AlignmentModel:
    """Return the model with its initial weights, on the CPU; in a `world`, rank 0 says what it starts from."""
    model = build_model(config.model, **prompt_shapes(config.model, bank_shapes(banks)))
    if config.start_from is not None:
        loaded, new = load_matching(model, config.start_from, keep=model.fixed())
        if world is not None:
            parts = Counter(name.split(".")[0] for name in new)
            rest = ", ".join(f"{count} of {part}" for part, count in parts.items()) or "none"
            say(world, f"starts from {config.start_from}: {len(loaded)} of its tensors; new ones: {rest}")
    return model


def _export(engine: Any, folder: Path, *, model: AlignmentModel, tokenizer: Any, world: World) -> None:
    """Write the whole model for teachers, fine-tuning and evaluation; collective under ZeRO-3."""
    weights = full_weights(engine, world=world)
    if world.is_main:
        save_model(folder, model, tokenizer=tokenizer, state=weights)


def _gradient_norm(engine: Any) -> dict[str, Tensor]:
    norm = engine.get_global_grad_norm()
    return {} if norm is None else {"gradient_norm": torch.as_tensor(norm)}
