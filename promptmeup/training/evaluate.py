"""Retrieval of a saved model on a packed split."""

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from promptmeup.config import Config
from promptmeup.data.opening import open_split
from promptmeup.data.remote import StagingConfig
from promptmeup.data.settings import DataConfig
from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import ImageConfig
from promptmeup.distributed.world import World
from promptmeup.models.saving import load_model, load_saved_tokenizer
from promptmeup.shard_format import write_atomically, write_json
from promptmeup.tracking.console import table
from promptmeup.tracking.provenance import last_config
from promptmeup.training.evaluation import encode_split, measure
from promptmeup.training.retrieval import CUTOFFS, chance


class EvaluateConfig(Config):
    """What is evaluated."""

    model: Path
    """model folder, such as RUN/best or RUN/model"""
    split: str
    """packed split: a folder or a URL"""
    cache: StagingConfig = StagingConfig()
    """how shards at a URL come to this node"""
    batch: int = Field(default=64, gt=0)
    max_tokens: int | None = Field(default=None, ge=8, le=512)
    """longer captions are cut; null: as in the run that the model folder lies in, else 40"""
    eval_mode: Literal["center", "whole"] | None = None
    """which part of a photo is seen; null: as in the run (data.image.eval_mode), else center"""
    workers: int = Field(default=0, ge=0)
    json_file: Path | None = None
    """where the numbers are written besides the screen"""
    ranks_file: Path | None = None
    """where each query's rank is written: {"direction": "image_to_text", "rank": 0}, one line each"""


def _as_in_training(config: EvaluateConfig, *, size: int) -> DataConfig:
    """Return the settings of the run that the model is of, with those that are given in their place."""
    found = last_config(config.model.resolve().parent) or {}
    trained = found.get("data") or {}
    image = trained.get("image") or {}
    max_tokens = config.max_tokens or trained.get("max_tokens", 40)
    eval_mode = config.eval_mode or image.get("eval_mode", "center")
    return DataConfig(
        train=config.split,
        max_tokens=max_tokens,
        workers=config.workers,
        image=ImageConfig(size=size, eval_mode=eval_mode),
    )


def evaluate(config: EvaluateConfig) -> None:
    """Print recall at 1, 5 and 10 in both directions beside chance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(config.model).to(device)
    split = open_split(config.split, config.cache)
    data = _as_in_training(config, size=model.config.vision.image_size)
    encoded = encode_split(
        model,
        split,
        config=data,
        tokenizer=TextTokenizer(load_saved_tokenizer(config.model)),
        mean=model.vision.mean,
        std=model.vision.std,
        batch=config.batch,
        dtype=torch.float32,
        world=World(rank=0, size=1, local_rank=0, device=device),
    )
    found = measure(encoded)
    num_images, num_captions = len(split), split.manifest.matched_pairs
    random = chance(num_images, num_captions)
    rows = [
        {"direction": name.replace("_to_", " -> ")}
        | {f"R@{k}": round(found[f"{name}_r{k}"], 4) for k in CUTOFFS}
        | {"R@10 by chance": round(random[name], 4)}
        for name in ("image_to_text", "text_to_image")
    ]
    print(f"{config.model} on {config.split}: {num_images} images, {num_captions} matched captions")
    print(f"captions of at most {data.max_tokens} tokens, photos seen {data.image.eval_mode}")
    print(table(rows))
    if config.ranks_file is not None:
        lines = [
            json.dumps({"direction": direction, "rank": rank, "split": split.manifest.fingerprint}) + "\n"
            for direction, rank_Q in encoded.ranks.items()
            for rank in rank_Q.tolist()
        ]
        config.ranks_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.ranks_file, "".join(lines).encode())
    if config.json_file is not None:
        config.json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            config.json_file, json.loads(json.dumps(found)) | {"images": num_images, "captions": num_captions}
        )
