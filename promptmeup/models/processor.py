"""Tokenizer and photo preparation side by side, as transformers' Auto classes expect them in a model's folder."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from transformers import PerceiverImageProcessor, VisionTextDualEncoderProcessor, ViTImageProcessor
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
    """Write what AutoProcessor, AutoTokenizer and AutoImageProcessor read, in classes of transformers itself.

    The pixels are those of `data.transforms.eval_view`, and what it makes are our models' arguments: they have no
    token types.
    """
    photos = image_processor(size=size, eval_mode=eval_mode, mean=mean, std=std)
    texts = deepcopy(tokenizer)
    texts.model_input_names = texts.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    VisionTextDualEncoderProcessor(image_processor=photos, tokenizer=texts).save_pretrained(folder)


def image_processor(
    *, size: int, eval_mode: Literal["center", "whole"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Any:
    """Return transformers' processor that makes of a photo what our models were trained with."""
    colours = {"image_mean": list(mean), "image_std": list(std), "resample": PILImageResampling.BICUBIC}
    square = {"height": size, "width": size}
    if eval_mode == "whole":
        return ViTImageProcessor(size=square, do_convert_rgb=True, **colours)
    # Perceiver's cuts the square out first and resizes it, as we do. CLIP's resizes first, to a side that is rounded,
    # and cuts at a whole pixel of the small photo: of 40 real photos at 96 pixels, the farthest pixel of each is off
    # by 69/255 in the median.
    return PerceiverImageProcessor(size=square, crop_size=square, do_convert_rgb=True, **colours)
