"""A fine-tuned model on single sentences, whose words are what stands between spaces."""

import re
from pathlib import Path
from typing import Any, Self

from promptmeup.errors import ConfigError, CorpusError
from promptmeup.extraction.batches import Rows
from promptmeup.extraction.examples import Example, SentenceEncoder
from promptmeup.extraction.folder import FinetunedModel, load_finetuned
from promptmeup.extraction.inference import Prediction, predict
from promptmeup.extraction.predictions import EntityPrediction, RelationPrediction
from promptmeup.records import Post, RelationInstance, WordSpan


class WordExtractor:
    """Predictions as JSON values; places are characters of the text."""

    def __init__(self, loaded: FinetunedModel) -> None:
        self._loaded = loaded
        config = loaded.model.config
        self._encoder = SentenceEncoder(loaded.tokenizer, labels=loaded.labels, max_tokens=config.max_tokens)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a folder that `folder.load_finetuned` reads."""
        return cls(load_finetuned(Path(folder)))

    @property
    def task(self) -> str:
        return self._loaded.task

    def entities(self, text: str, image: str | Path | None = None) -> list[dict[str, Any]]:
        """Return the entities: text, type, start, end, score.

        Raises:
            ConfigError: the model finds relations, or cannot take the photo.
        """
        self._check("entities", image)
        places = [match.span() for match in re.finditer(r"\S+", text)]
        if not places:
            return []
        found = self._predict(self._encoder.entities(_post(text, image)), image)
        assert isinstance(found, EntityPrediction)
        spans = [(places[entity.start][0], places[entity.end - 1][1], entity) for entity in found.entities]
        return [
            {"text": text[start:end], "type": entity.type, "start": start, "end": end, "score": entity.score}
            for start, end, entity in spans
        ]

    def relation(self, text: str, *, head: str, tail: str, image: str | Path | None = None) -> dict[str, Any]:
        """Return the relation of two mentions, each the first such words of the text: relation, score, head, tail.

        Raises:
            ConfigError: the model finds entities, cannot take the photo, or the text has no such words.
        """
        self._check("relations", image)
        post = _post(text, image)
        first, second = _mention(post.words, head, "head"), _mention(post.words, tail, "tail")
        instance = RelationInstance(
            id=post.id, words=post.words, image=post.image, head=first, tail=second, relation=""
        )
        found = self._predict(self._encoder.relation(instance, head=first, tail=second), image)
        assert isinstance(found, RelationPrediction)
        return {"relation": found.relation, "score": found.score, "head": head, "tail": tail}

    def _check(self, task: str, image: str | Path | None) -> None:
        if self.task != task:
            raise ConfigError(f"this model finds {self.task}, not {task}; load another one")
        if image is not None and self._loaded.pictures is None:
            raise ConfigError("this model reads text only; leave the image out")

    def _predict(self, example: Example, image: str | Path | None) -> Prediction:
        model = self._loaded.model
        ((_, found),) = predict(
            model,
            [example],
            rows=Rows([example], pad_id=self._loaded.tokenizer.pad_token_id, pictures=self._loaded.pictures),
            order=iter([[(0, 1.0)]]),
            labels=self._loaded.labels,
            vision=model.encoder.vision,
            crf=model.crf if self.task == "entities" else None,
            device=model.device,
        )
        if image is not None and not found.has_image:
            raise CorpusError(f"cannot read the image {image}: give the path of a JPEG, PNG or the like")
        return found


def _post(text: str, image: str | Path | None) -> Post:
    return Post(id="text", words=tuple(text.split()), image=None if image is None else Path(image))


def _mention(words: tuple[str, ...], mention: str, name: str) -> WordSpan:
    wanted = tuple(mention.split())
    for start in range(len(words) - len(wanted) + 1):
        if wanted and words[start : start + len(wanted)] == wanted:
            return WordSpan(start, start + len(wanted), wanted)
    raise ConfigError(f"{name}: {mention!r} is not a run of whole words of the text {' '.join(words)!r}")
