"""Opening a teacher: a saved dual encoder, or a CLIP or SigLIP."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from promptmeup.config import fingerprint
from promptmeup.data.text import TextTokenizer
from promptmeup.errors import WeightsError
from promptmeup.models.saving import load_model, load_saved_tokenizer, state_fingerprint
from promptmeup.models.weights import find
from promptmeup.prompts.teacher import Teacher
from promptmeup.training.clip_teacher import ClipTeacher

MAX_PROMPT_TOKENS = 40

_ACCEPTED = (
    "RUN/model or RUN/best of a finished run, to a directory with a CLIP or SigLIP, or to one's name on the "
    "model hub, such as openai/clip-vit-base-patch32"
)


def open_teacher(source: str, *, device: torch.device) -> Teacher:
    """Return the teacher that `source` names.

    Args:
        source: a model folder of ours (it holds model.json), a directory with a CLIP or SigLIP (config.json),
            or, where no such directory exists, a name on the model hub.

    Raises:
        WeightsError: nothing there, or another model.
    """
    folder = find(source, key="teacher", instead=_ACCEPTED)
    if (folder / "model.json").is_file():
        return SavedTeacher(folder, device=device)
    if (folder / "config.json").is_file():
        return ClipTeacher(folder, device=device)
    raise WeightsError(
        f"teacher: {source} holds no saved model (no model.json) and no CLIP or SigLIP (no config.json); "
        f"point teacher to {_ACCEPTED}"
    )


class SavedTeacher:
    """Implements `prompts.teacher.Teacher` over a model folder (RUN/model or RUN/best)."""

    def __init__(self, folder: Path, *, device: torch.device) -> None:
        """
        Raises:
            WeightsError: `folder` holds no saved model.
        """
        model = load_model(folder).requires_grad_(False)
        # before the move: the fingerprint must not depend on the device
        weights = state_fingerprint(model)
        self._model = model.to(device)
        self._tokenizer = TextTokenizer(load_saved_tokenizer(folder))
        self.device = device
        self.image_size = model.config.vision.image_size
        self.mean, self.std = model.vision.mean, model.vision.std
        self.temperature = float(model.heads.temperature())
        self.fingerprint = fingerprint(
            {"weights": weights, "size": self.image_size, "mean": self.mean, "std": self.std}
        )

    @torch.no_grad()
    def encode_images(self, images_BCSS: Tensor) -> Tensor:
        """Normalised float32 images on `device` -> unit rows [B, D]."""
        return self._model.encode_images(images_BCSS)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences -> unit rows [B, D]."""
        tokens_BL, mask_BL = self._tokenizer(texts, max_length=MAX_PROMPT_TOKENS)
        return self._model.encode_texts(tokens_BL.to(self.device), mask_BL.to(self.device))
