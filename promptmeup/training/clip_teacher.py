"""CLIP and SigLIP, as transformers loads them, in the role of the teacher."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, CLIPModel, PreTrainedTokenizerFast, SiglipModel

from promptmeup.config import fingerprint
from promptmeup.data.text import TextTokenizer
from promptmeup.errors import WeightsError
from promptmeup.models.saving import state_fingerprint
from promptmeup.models.weights import quiet_transformers, some

_MODELS = {"clip": CLIPModel, "siglip": SiglipModel}

# what decides over features beside the weights; a CLIP with the wrong hidden_act is a common mistake
_SETTINGS = ("hidden_act", "num_attention_heads", "layer_norm_eps", "eos_token_id")


class ClipTeacher:
    """Implements `prompts.teacher.Teacher` over a directory of model type `clip` or `siglip`.

    SigLIP 2 of a fixed resolution is of type `siglip` as well. Images come as squares, their shape
    changed and nothing cut off (`prompts.crops.resize_square`): SigLIP's own way. CLIP's own is to cut
    out the middle, which would lose objects at the edge.

    The temperature is 1 / exp(logit_scale). SigLIP was trained with sigmoids of single pairs, so a softmax
    over prompts, and this temperature for it, is a choice; its bias is the same for all prompts, and
    falls out.
    """

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        """
        Raises:
            WeightsError: another type of model, files that are missing or damaged or do not belong
                together, or images that are not square.
        """
        model_type = _model_type(folder)
        model = _load_model(folder, _MODELS[model_type])
        tokenizer = _load_tokenizer(folder, vocabulary=model.config.text_config.vocab_size)
        self.image_size, self.mean, self.std = _load_image_settings(
            folder, expected=model.config.vision_config.image_size
        )
        self.temperature = math.exp(-float(model.logit_scale))
        parts = (model.config.text_config, model.config.vision_config)
        # before the move: the fingerprint must not depend on the device
        self.fingerprint = fingerprint(
            {
                "type": model_type,
                "weights": state_fingerprint(model),
                "settings": {name: [getattr(part, name, None) for part in parts] for name in _SETTINGS},
                "tokenizer": _tokenizer_description(tokenizer),
                "size": self.image_size,
                "mean": self.mean,
                "std": self.std,
            }
        )
        self._is_siglip = model_type == "siglip"
        self._tokenizer = TextTokenizer(tokenizer)
        self._max_length = model.config.text_config.max_position_embeddings
        self._model = model.to(device)
        self.device = device

    @torch.no_grad()
    def encode_images(self, images_BCSS: Tensor) -> Tensor:
        """Normalised float32 images on `device` -> unit rows [B, D]."""
        return F.normalize(self._model.get_image_features(images_BCSS).pooler_output, dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit rows [B, D]; those longer than the model's maximum are cut."""
        if self._is_siglip:
            # As it was trained: in lower case, which some copies of SigLIP 2's tokenizer leave out, and
            # filled up to the maximum without a mask. Its vector is the last place's, filled or not.
            texts = [text.lower() for text in texts]
            tokens_BL, _ = self._tokenizer(texts, max_length=self._max_length, pad_to="max")
            found = self._model.get_text_features(tokens_BL.to(self.device))
        else:
            tokens_BL, mask_BL = self._tokenizer(texts, max_length=self._max_length)
            found = self._model.get_text_features(
                tokens_BL.to(self.device), attention_mask=mask_BL.to(self.device)
            )
        return F.normalize(found.pooler_output, dim=-1)


def _model_type(folder: Path) -> str:
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"teacher: cannot read {folder}/config.json: {error}") from error
    found = description.get("model_type") if isinstance(description, dict) else None
    if found == "siglip2":
        raise WeightsError(
            f"teacher: {folder} holds a SigLIP 2 for any resolution (NaFlex, model_type 'siglip2'), but images "
            "come as squares of one size; take one of a fixed resolution, such as "
            "google/siglip2-base-patch16-224 (of model_type 'siglip')"
        )
    if found not in _MODELS:
        raise WeightsError(
            f"teacher: {folder} holds a model of type {found!r}; a teacher is a CLIP or SigLIP (model_type "
            f"{' or '.join(map(repr, _MODELS))}) or a model trained here (RUN/model or RUN/best)"
        )
    return str(found)


def _load_model(folder: Path, kind: Any) -> Any:
    try:
        with quiet_transformers():
            # in the checkpoint's own dtype, which may be half precision, unless told
            model, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"teacher: cannot read a {kind.__name__} from {folder}: {error}") from error
    if report["missing_keys"]:
        raise WeightsError(
            f"teacher: {folder} lacks weights of the model: {some(sorted(report['missing_keys']))}; "
            "fetch the files again or point to another directory"
        )
    return model.requires_grad_(False).eval()


def _load_tokenizer(folder: Path, *, vocabulary: int) -> Any:
    # tokenizer.json alone: which class AutoTokenizer takes depends on what else is installed
    # (sentencepiece), and labels must not
    if not (folder / "tokenizer.json").is_file():
        raise WeightsError(
            f"teacher: {folder} holds no tokenizer.json; fetch it with the weights, or make it with "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        with quiet_transformers():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a damaged file
        raise WeightsError(f"teacher: cannot read a tokenizer from {folder}: {error}") from error
    if len(tokenizer) > vocabulary:
        raise WeightsError(
            f"teacher: the tokenizer of {folder} knows {len(tokenizer)} tokens, the model {vocabulary}: they do "
            "not belong together; fetch the files again"
        )
    return tokenizer


def _tokenizer_description(tokenizer: Any) -> dict[str, Any]:
    """Return all that decides over token ids, but not how somebody padded and cut when saving it."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description.update(padding=tokenizer.pad_token_id, truncation=None)
    return dict(description)


def _load_image_settings(folder: Path, *, expected: int) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return the side of the square, mean and standard deviation of the image processor's configuration."""
    try:
        with quiet_transformers():
            settings = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"teacher: cannot read preprocessor_config.json of {folder}, which says how images are "
            f"normalised: {error}"
        ) from error
    cut = getattr(settings, "do_center_crop", None)
    size = dict(settings.crop_size if cut else settings.size)
    if (size.get("height"), size.get("width")) != (expected, expected):
        raise WeightsError(
            f"teacher: the image processor of {folder} makes images of {size}; a teacher takes squares of its "
            f"model's size, here {{'height': {expected}, 'width': {expected}}}: set "
            f"{'crop_size' if cut else 'size'} in preprocessor_config.json, or take another model"
        )
    mean, std = (tuple(float(value) for value in row) for row in (settings.image_mean, settings.image_std))
    return expected, mean, std
