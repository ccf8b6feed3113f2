"""What MLflow loads an exported model with: rows of text, image, head, tail -> one JSON text a row."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from promptmeup.data.text import TextTokenizer
from promptmeup.data.transforms import normalise
from promptmeup.errors import ConfigError, CorpusError, UserError
from promptmeup.extraction.pictures import Pictures
from promptmeup.extraction.predict import Extractor
from promptmeup.models.weights import quiet_transformers
from promptmeup.records import Post

INPUTS = {"text": True, "image": False, "head": False, "tail": False}
"""columns of text, and whether they must be there; `image` is a path"""

ENTITY = ("text", "type", "start", "end", "score")
"""what is said of an entity; its places are characters of the text"""


class Answers(Protocol):
    """Says something of one row: JSON values."""

    def __call__(self, row: dict[str, str | None]) -> Any: ...


class TableModel:
    """What MLflow calls."""

    def __init__(self, answer: Answers) -> None:
        self._answer = answer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:  # noqa: ARG002
        """Return the JSON of each row of a pandas table; {"error": ...} for one that cannot be answered.

        Raises:
            UserError: no row can be answered.
        """
        rows = [
            # pandas writes NaN where a text is absent
            {name: value if isinstance(value := row.get(name), str) and value else None for name in INPUTS}
            for row in model_input.to_dict("records")
        ]
        answers: list[Any] = []
        errors: list[UserError] = []
        for row in rows:
            try:
                answers.append(self._answer(row))
            except UserError as error:
                errors.append(error)
                answers.append({"error": str(error)})
        if errors and len(errors) == len(rows):
            raise errors[0]
        return [json.dumps(answer, ensure_ascii=False) for answer in answers]


def _load_pyfunc(path: str) -> TableModel:
    """Return the model in the exported folder `path`; MLflow calls it by its name."""
    with quiet_transformers():
        is_pretrained = AutoConfig.from_pretrained(path).model_type == "promptmeup"
    return TableModel(Similarity(Path(path)) if is_pretrained else Extraction(Extractor.load(path)))


class Extraction:
    """Entities, or the relation of head and tail."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    def __call__(self, row: dict[str, str | None]) -> Any:
        text, image, head, tail = row["text"] or "", row["image"], row["head"], row["tail"]
        if self._extractor.task == "entities":
            found = self._extractor.entities(text, image=image)
            return [{name: getattr(entity, name) for name in ENTITY} for entity in found]
        if head is None or tail is None:
            raise ConfigError("this model says how two mentions are related: give the columns head and tail")
        relation = self._extractor.relation(text, head=head, tail=tail, image=image)
        return {"relation": relation.relation, "score": relation.probability, "head": head, "tail": tail}


class Similarity:
    """How well a text fits a photo: the cosine of their vectors, and that divided by the temperature."""

    def __init__(self, folder: Path) -> None:
        with quiet_transformers():
            model = AutoModel.from_pretrained(folder)
            self._tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(folder))
        self._model, self._max_tokens = model.alignment.eval(), model.config.max_tokens
        size = model.alignment.config.vision.image_size
        self._pictures = Pictures(size=size, eval_mode=model.config.eval_mode, max_crops=0)

    @torch.no_grad()
    def __call__(self, row: dict[str, str | None]) -> Any:
        text, image = row["text"], row["image"]
        if text is None or image is None:
            raise ConfigError("this model compares a text with a photo: give the columns text and image")
        photo_CSS, _ = self._pictures.read(Post(id="text", words=(), image=Path(image)))
        if photo_CSS is None:
            raise CorpusError(f"cannot read the image {image}: give the path of a JPEG, PNG or the like")
        vision = self._model.vision
        image_1D = self._model.encode_images(normalise(photo_CSS[None], mean=vision.mean, std=vision.std))
        text_1D = self._model.encode_texts(*self._tokenizer([text], max_length=self._max_tokens))
        cosine = float((image_1D * text_1D).sum())
        return {"cosine": cosine, "similarity": cosine / float(self._model.heads.temperature())}
