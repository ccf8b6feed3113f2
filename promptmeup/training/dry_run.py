"""What a run would be, before it is one: corpus, steps, parameters, memory, operations, and the line that starts it.

A model is built on the meta device; nothing is fetched, written or started, and no ranks meet.
"""

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from promptmeup.data.reader import PackedSplit
from promptmeup.data.remote import is_remote
from promptmeup.data.sources import Sources, shares_of
from promptmeup.distributed.engine import compute_dtype
from promptmeup.distributed.memory import STAGES, Stage, checkpoint_bytes, state_memory
from promptmeup.distributed.peaks import peak_tflops
from promptmeup.distributed.world import gpu_names
from promptmeup.errors import ConfigError, ShardError, WeightsError
from promptmeup.losses.cost import bank_shapes, loss_flops, loss_memory
from promptmeup.models.alignment import AlignmentModel, PromptShapes, prompt_shapes
from promptmeup.models.cost import parameters_by_part, row_cost, saved_bytes
from promptmeup.models.sketch import sketch
from promptmeup.models.weights import find_here
from promptmeup.progress import listed
from promptmeup.prompts.bank import load_banks
from promptmeup.shard_format import finished_labels, labels_folder, read_label_manifest, read_manifest
from promptmeup.tracking.console import duration, table
from promptmeup.training.checkpoint import complete
from promptmeup.training.inputs import choose_labels
from promptmeup.training.label import LabelRunConfig
from promptmeup.training.settings import PretrainConfig
from promptmeup.training.throughput import step_flops

GIB = 2**30
EXAMPLE_GPU = "NVIDIA H100"
"""whose peak times are given for, where no GPU is in this machine"""
EXAMPLE_MFU = 0.4


def plan_pretraining(config: PretrainConfig, ranks: int | None) -> str:
    """Return what the run would be on `ranks` ranks; None: as many as a launcher started, or one.

    Raises:
        ConfigError: it could not be.
    """
    ranks = ranks or ranks_here(os.environ)
    if config.global_batch % ranks:
        raise ConfigError(
            f"a global batch of {config.global_batch} pairs does not divide over {ranks} ranks; "
            f"choose global_batch={max(1, config.global_batch // ranks) * ranks}"
        )
    pairs, data = _data(config)
    shapes, labels = known_labels(config)
    lines = [
        ("run", f"{config.out}, {ranks} rank{'s' if ranks > 1 else ''}{_earlier(config.out)}"),
        *data,
        *labels,
    ]
    steps = config.steps or (math.ceil((config.epochs or 0) * pairs / config.global_batch) if pairs else None)
    lines += [("steps", _steps(config, steps, pairs, ranks))]
    try:
        model = sketch(config.model, **prompt_shapes(config.model, shapes))
    except WeightsError as error:
        lines += [("model", f"not known: {error}")]
        return "\n".join([*listed(lines), *_start_lines(ranks)])
    lines += _weights(config)
    by_part = parameters_by_part(model)
    total = sum(by_part.values())
    parts = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in by_part.items() if count)
    lines += [("parameters", f"{total / 1e6:.1f} million: {parts}")]
    dtype, why = gpu_precision(config, model)
    lines += _operations(config, model, shapes, ranks=ranks, steps=steps, dtype=dtype)
    stage = config.engine.stage(ranks=ranks, dtype=dtype)
    memory = _memory(config, model, total, ranks=ranks, dtype=dtype, chosen=stage)
    size = checkpoint_bytes(total, stage=stage, dtype=dtype)
    disk = (
        f"{_size(size)} a checkpoint, {config.keep_checkpoints} kept and a new one beside them; "
        f"best/ and model/ {_size(4 * total)} each"
    )
    told = f"{stage}" if stage == config.engine.zero_stage else f"{config.engine.zero_stage}: {stage}"
    title = f"memory of a rank in GiB, in {_name(dtype)}{why}; engine.zero_stage is {told}"
    return "\n".join([*listed([*lines, ("disk", disk)]), "", title, *memory, "", *_start_lines(ranks)])


def ranks_here(environment: Mapping[str, str]) -> int:
    """Return how many ranks a launcher started, or has been promised; one where there is none."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if environment.get(name, "").isdecimal():
            return max(1, int(environment[name]))
    return 1


def _earlier(out: Path) -> str:
    tags = complete(out)
    return f"; goes on from {tags[-1]}" if tags else ""


def _data(config: PretrainConfig) -> tuple[int | None, list[tuple[str, str]]]:
    """Return the pairs of an epoch, None where a corpus is not here, and lines about the corpora."""
    data = config.data
    training = data.training
    shares = shares_of([part.share for part in data.blend])
    lines = [
        ("corpus" if share == 1 else f"corpus, {share:.0%}", describe_split(place))
        for place, share in zip(training, shares, strict=True)
    ]
    lines += [("dev split", describe_split(data.val) if data.val else "none: no retrieval, and no best/")]
    if not all(_is_here(place) for place in training):
        return None, lines
    splits = tuple(PackedSplit(Path(place)) for place in training)
    return Sources(splits, shares, config.seed, data.window, data.pairs).stream.num_pairs, lines


def _is_here(place: str) -> bool:
    return not is_remote(place) and (Path(place) / "manifest.json").exists()


def describe_split(place: str) -> str:
    """Return a line on a packed split: what is in it, or that it is not here."""
    if is_remote(place):
        return f"{place}: on a server, which a dry run does not ask"
    if not _is_here(place):
        return f"{place}: not there yet; shards/pack.py makes it"
    manifest = read_manifest(Path(place))
    return (
        f"{place}: {manifest.samples} photos, {manifest.pairs} pairs ({manifest.matched_pairs} matched), "
        f"fingerprint {manifest.fingerprint}"
    )


def known_labels(config: PretrainConfig) -> tuple[PromptShapes | None, list[tuple[str, str]]]:
    """Return the shapes of the banks, those of the paper where they are not here, and a line; None if not needed."""
    if not config.needs_labels:
        return None, []
    width = config.model.width
    usual: PromptShapes = ((1000, width), (369, width))
    assumed = f"assumed: 1000 entities and 369 relations of width {width}"
    if not _is_here(config.data.train):
        return usual, [("labels", f"not there yet; launch/label.py makes them; {assumed}")]
    split = Path(config.data.train)
    try:
        folder = choose_labels(split, config.data.labels)
        found = load_banks(folder, corpus=read_manifest(split).fingerprint)
    except (ConfigError, ShardError) as error:
        return usual, [("labels", f"{error}; {assumed}")]
    bank = read_label_manifest(folder)
    shapes = bank_shapes(found)
    told = (
        f"{folder.name}: {len(bank.entities)} entities, {len(bank.relations)} relations, "
        f"width {found.entities_KD.shape[1]}"
    )
    return shapes, [("labels", told)]


def _weights(config: PretrainConfig) -> list[tuple[str, str]]:
    text, vision = config.model.text, config.model.vision
    lines = [("model", f"text {text.weights}, vision {vision.weights}, {vision.image_size} pixels")]
    if config.start_from is not None:
        there = (config.start_from / "model.json").exists()
        lines += [("starts from", f"{config.start_from}{'' if there else ': not there yet'}")]
    return lines


def gpu_precision(config: PretrainConfig, model: nn.Module) -> tuple[torch.dtype, str]:
    """Return the run's dtype on a GPU, which this machine need not have."""
    dtype = compute_dtype(config.engine, model, torch.device("cuda"))
    is_chosen_here = config.engine.precision == "auto" and not torch.cuda.is_available()
    return dtype, " as on a GPU (fp32 on a CPU)" if is_chosen_here and dtype is torch.bfloat16 else ""


def _name(dtype: torch.dtype) -> str:
    return "bf16" if dtype is torch.bfloat16 else "fp32"


def _steps(config: PretrainConfig, steps: int | None, pairs: int | None, ranks: int) -> str:
    rows = config.global_batch // ranks
    micro = config.micro_batch
    parts = f" in parts of {micro}" if micro is not None and micro < rows else ""
    each = f"{config.global_batch} pairs each, {rows} a rank{parts}"
    if steps is None:
        return f"of {each}; {config.epochs:g} epochs, whose length the corpus will say"
    epochs = f", {steps * config.global_batch / pairs:.2f} epochs of {pairs} pairs" if pairs else ""
    often = [
        f"{what} every {count}"
        for what, count in (("evaluates", config.evaluate_every), ("saves", config.save_every))
        if count
    ]
    return f"{steps} of {each}{epochs}" + "".join(f"; {text}" for text in often)


def _operations(
    config: PretrainConfig,
    model: AlignmentModel,
    shapes: PromptShapes | None,
    *,
    ranks: int,
    steps: int | None,
    dtype: torch.dtype,
) -> list[tuple[str, str]]:
    rows, length, objects = config.global_batch // ranks, config.data.max_tokens, config.data.max_objects
    cost = row_cost(model, max_objects=objects)
    losses = loss_flops(
        config.loss,
        rows=rows,
        columns=config.global_batch,
        width=config.model.width,
        objects=objects,
        banks=shapes,
        classifies=config.model.prompt_head == "classifier",
    )
    flops = step_flops(cost, rows=rows, length=length, losses=losses)
    done = step_flops(cost, rows=rows, length=length, losses=losses, micro_batch=config.micro_batch)
    if config.engine.activation_checkpointing == "full":
        done += rows * cost.forward_flops(length)
    pair = flops / rows
    share = f"{losses / flops:.1%}" if losses >= flops / 1000 else "under 0.1%"
    text = (
        f"{_flop(pair)} a pair ({length} tokens, the longest; losses {share}), "
        f"{_flop(flops * ranks)} a step, {_flop(flops)} of them on each rank"
    )
    if done > flops:
        text += f", {_flop(done)} with what is computed again"
    gpu = gpu_names()[0] if torch.cuda.is_available() else EXAMPLE_GPU
    peak = config.peak_tflops or peak_tflops(gpu, dtype)
    lines = [("operations", text)]
    if peak is not None:
        seconds = done / (EXAMPLE_MFU * peak * 1e12)
        name = "a GPU" if config.peak_tflops else gpu
        time = (
            f"at {EXAMPLE_MFU:.0%} of the {peak:g} TFLOP/s of {name}: {seconds:.3g} s a step, "
            f"{config.global_batch / seconds:.0f} pairs/s"
        )
        lines += [("time", time + (f", {duration(steps * seconds)} in all" if steps else ""))]
    return lines


def _flop(count: float) -> str:
    for factor, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= factor:
            return f"{count / factor:.3g} {name}"
    return f"{count / 1e6:.3g} MFLOP"


def _memory(
    config: PretrainConfig,
    model: AlignmentModel,
    parameters: int,
    *,
    ranks: int,
    dtype: torch.dtype,
    chosen: Stage,
) -> list[str]:
    rows = config.global_batch // ranks
    in_model = min(rows, config.micro_batch or rows)
    saved = saved_bytes(
        model,
        length=config.data.max_tokens,
        max_objects=config.data.max_objects,
        dtype=dtype,
        checkpointing=config.engine.activation_checkpointing,
    )
    activations = saved.of(in_model) + loss_memory(
        config.loss, rows=rows, columns=config.global_batch, width=config.model.width, dtype=dtype
    )
    found = []
    for stage in STAGES:
        state = state_memory(parameters, stage=stage, ranks=ranks, dtype=dtype)
        numbers = {
            "parameters": state.parameters,
            "optimizer": state.optimizer,
            "gradients": state.gradients,
            "activations": activations,
            "update": state.update,
            "peak": state.peak(activations),
        }
        row = {"ZeRO": f"{stage} *" if stage == chosen else f"{stage}"}
        found.append(row | {name: f"{number / GIB:.2f}" for name, number in numbers.items()})
    note = (
        "peak: parameters, optimizer, and the larger of gradients + activations and of the update; CUDA, NCCL and "
        "torch's allocator take some more"
    )
    return [table(found), note]


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _start_lines(ranks: int) -> list[str]:
    """Return what starts this run under Slurm and without, from the command line that asked."""
    arguments = [text for text in sys.argv[1:] if not text.startswith(("--dry-run", "--local"))]
    config, others = _split_config(arguments)
    words = shlex.join(["--config", config, *others] if config else others)
    nodes = next(n for n in range(-(-ranks // 8), ranks + 1) if ranks % n == 0)
    tasks = ranks // nodes
    sbatch = f"--nodes={nodes} --ntasks-per-node={tasks} --gpus-per-node={tasks}"
    lines = ["start it with"]
    if config:
        lines += [f"  sbatch {sbatch} slurm/pretrain.sh {shlex.join([config, *others])}", "which runs"]
    lines += [f"  srun --kill-on-bad-exit=0 --wait=60 python -u launch/pretrain.py {words}"]
    if nodes == 1:
        lines += ["or, without Slurm,", f"  deepspeed --num_gpus {tasks} launch/pretrain.py {words}"]
    else:
        lines += ["or, without Slurm,", f"  deepspeed --hostfile HOSTS launch/pretrain.py {words}"]
    return lines


def _split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the file that --config names, and the other arguments."""
    config, others, waiting = None, [], False
    for text in arguments:
        if waiting:
            config, waiting = text, False
        elif text == "--config":
            waiting = True
        elif text.startswith("--config="):
            config = text.partition("=")[2]
        else:
            others.append(text)
    return config, others


def plan_labelling(config: LabelRunConfig, ranks: int | None) -> str:
    """Return what would be labelled by whom, how much of it, and where it would be written."""
    lines = [("teacher", describe_source(config.teacher, key="teacher"))]
    for folder in config.splits:
        lines += [("split", describe_split(str(folder)))]
        if not _is_here(str(folder)):
            continue
        manifest = read_manifest(folder)
        boxes = sum(entry.boxes for entry in manifest.shards)
        size = 4 * config.num_kept * (boxes + manifest.samples)
        lines += [
            (
                "writes",
                f"{labels_folder(folder, 'NAME')}: {boxes} objects, {manifest.samples} photos, {_size(size)}",
            ),
            ("there are", ", ".join(path.name for path in finished_labels(folder)) or "no labels yet"),
        ]
    lines += [
        ("NAME", "a fingerprint of teacher, vocabulary, templates and corpus; what it names is never redone")
    ]
    lines += [
        (
            "shards",
            f"shared by {ranks or ranks_here(os.environ)} process(es); `accelerate launch` starts more",
        )
    ]
    return "\n".join(listed(lines))


def describe_source(source: str, *, key: str) -> str:
    """Return a line on weights: a folder, a package or a name on the model hub, and whether they are here."""
    folder = find_here(source, key=key)
    if folder is None:
        return f"{source}: not on this machine; a run would ask the model hub for it, where that is its name"
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    return f"{source}{f', {_size(size)} of tensors' if size else ''}"
