"""Tokenizer and photo preparation side by side, as transformers' Auto classes expect them in a model's folder."""

from pathlib import Path
from typing import Any, Literal

from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.image_utils import PILImageResampling


def save_processor(
    folder: Path,
    tokenizer: Any,
    *,
    size: int,
    eval_mode: Literal["center", "whole"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Write what AutoTokenizer and AutoImageProcessor read; the pixels are those of `data.transforms.eval_view`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    image_processor(size=size, eval_mode=eval_mode, mean=mean, std=std).save_pretrained(folder)


def image_processor(
    *, size: int, eval_mode: Literal["center", "whole"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Any:
    """Return transformers' processor that makes of a photo what our models were trained with."""
    colours = {"image_mean": list(mean), "image_std": list(std), "resample": PILImageResampling.BICUBIC}
    if eval_mode == "whole":
        return ViTImageProcessor(size={"height": size, "width": size}, do_convert_rgb=True, **colours)
    square = {"height": size, "width": size}
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square, **colours)
