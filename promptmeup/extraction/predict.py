"""Entities and relations in sentences that nobody has labelled.

    extractor = Extractor.load("runs/twitter2015/best")
    print(extractor.entities("Keller speaks at the Harvest Festival", image="photo.jpg"))

Text is split into words as the Twitter corpora have them (extraction/words.py); a list of words is taken as it is. Both
go the way of fine-tuning's own evaluation: same tokens, same pixels, same model.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch

from promptmeup.corpora.json_files import is_text
from promptmeup.errors import InputError, WeightsError
from promptmeup.extraction.batches import Rows, evaluation_rows
from promptmeup.extraction.examples import Example, SentenceEncoder
from promptmeup.extraction.folder import FinetunedModel, load_finetuned
from promptmeup.extraction.inference import has_images, outputs, predict
from promptmeup.extraction.pictures import image_error, read_error
from promptmeup.extraction.predictions import EntityPrediction
from promptmeup.extraction.words import Characters, Mention, find_mention, join_words, split_words
from promptmeup.models.extraction import EntityModel, Task
from promptmeup.records import Box, Post, WordSpan

Text = str | Sequence[str]
"""free text, or words as they are"""


@dataclass(frozen=True)
class Query:
    """What is asked about: a sentence, its photo, and for relations two mentions in it."""

    text: Text
    image: str | Path | None = None
    head: Mention | None = None
    """as it stands in the text, or START:END in characters; (start, end) are characters of a text, but of a list of
    words they are words"""
    tail: Mention | None = None
    boxes: tuple[Box, ...] | None = None
    """of objects in the photo, for a model that looks at them by themselves"""
    crops: tuple[Path, ...] = ()
    """pictures of such objects, in the place of boxes"""


@dataclass(frozen=True)
class FoundSpan:
    """Characters [start, end) of the text, which are its words [words[0], words[1])."""

    start: int
    end: int
    text: str
    words: tuple[int, int]


@dataclass(frozen=True)
class FoundEntity(FoundSpan):
    """A named entity."""

    type: str
    score: float
    """the model's probability that exactly these words are one entity of this type"""


@dataclass(frozen=True, kw_only=True)
class SeenSentence:
    """A sentence as the model saw it."""

    text: str
    """words that were given as such: with a space between them"""
    words: tuple[str, ...]
    has_image: bool
    """whether the model saw the photo"""
    image_error: str | None = None
    """why it did not see one that was named, or a crop"""
    cut_words: int = 0
    """words that the model did not see, since the sentence is too long for it"""


class Entities(list[FoundEntity]):
    """The entities of a sentence in its order, and what is to be said about the sentence."""

    def __init__(self, found: Sequence[FoundEntity], about: SeenSentence) -> None:
        super().__init__(found)
        self.text = about.text
        self.words = about.words
        self.has_image = about.has_image
        self.image_error = about.image_error
        self.cut_words = about.cut_words


@dataclass(frozen=True, kw_only=True)
class FoundRelation(SeenSentence):
    """How the head is related to the tail."""

    relation: str
    probability: float
    probabilities: dict[str, float] = field(repr=False)
    """of all relations, the most probable first"""
    head: FoundSpan
    """whole words: those that the mention touches"""
    tail: FoundSpan


@dataclass(frozen=True)
class _Sentence:
    """A query as the model gets it."""

    query: Query
    text: str
    spans: tuple[Characters, ...]
    """the characters of each word"""
    post: Post

    def span(self, words: tuple[int, int]) -> FoundSpan:
        start, end = self.spans[words[0]][0], self.spans[words[1] - 1][1]
        return FoundSpan(start, end, self.text[start:end], words)

    def mention(self, name: str) -> tuple[int, int]:
        """Return the words of the head or the tail."""
        mention: Mention | None = getattr(self.query, name)
        if mention is None:
            raise InputError(f"a relation has a head and a tail, and no {name} was given")
        if isinstance(mention, str) or isinstance(self.query.text, str):
            return find_mention(self.text, self.spans, mention, name=name)
        start, end = mention
        if not 0 <= start < end <= len(self.spans):
            raise InputError(
                f"{name} [{start}, {end}] must be words START and END with 0 <= START < END <= {len(self.spans)}"
            )
        return start, end


class Extractor:
    """A fine-tuned model, ready for sentences.

    Args:
        found: the model and what it needs, on the device on which it runs.
        warn: told once that a model of text only was given a photo, or no boxes one that looks at objects.
    """

    def __init__(self, found: FinetunedModel, *, warn: Callable[[str], None] = warnings.warn) -> None:
        self.folder = found.folder
        self.task: Task = found.task
        self.labels = found.labels
        """tags or relations"""
        self._found, self._model, self._pictures = found, found.model, found.pictures
        max_tokens = found.model.config.max_tokens
        self._encoder = SentenceEncoder(found.tokenizer, labels=found.labels, max_tokens=max_tokens)
        self._warn = warn
        self._warned: set[str] = set()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> Self:
        """Load RUN, RUN/best or a copy of it.

        Args:
            device: None: a GPU where there is one.

        Raises:
            WeightsError: there is no fine-tuned model, or it cannot be read.
        """
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(load_finetuned(Path(folder), device=torch.device(device or usual)), warn=warn)

    @property
    def reads_images(self) -> bool:
        return self._pictures is not None

    def entities(self, text: Text, image: str | Path | None = None) -> Entities:
        """Return the entities in a sentence.

        Raises:
            InputError: the image is absent or cannot be read.
            WeightsError: the model finds relations.
        """
        (found,) = self.entities_batch([Query(text, image)])
        _require_image(found.image_error)
        return found

    def relation(
        self, text: Text, *, head: Mention, tail: Mention, image: str | Path | None = None
    ) -> FoundRelation:
        """Return how `head` is related to `tail`, both as in `Query`.

        Raises:
            InputError: a mention is not there or is there several times; the image is absent or cannot be read.
            WeightsError: the model finds entities.
        """
        (found,) = self.relations_batch([Query(text, image, head, tail)])
        _require_image(found.image_error)
        return found

    def entities_batch(self, queries: Sequence[Query | str], *, batch: int = 32) -> list[Entities]:
        """Return the entities of each sentence, `batch` of them at once; of an unreadable image, `image_error` says so.

        Raises:
            WeightsError: the model finds relations.
        """
        self._require("entities")
        sentences = [self._sentence(query) for query in queries]
        examples = [self._encoder.entities(sentence.post) for sentence in sentences]
        found = predict(
            self._model,
            examples,
            rows=self._rows(examples),
            order=evaluation_rows(examples, batch=batch, rank=0, size=1),
            labels=self.labels,
            vision=self._model.encoder.vision,
            crf=cast(EntityModel, self._model).crf,
            device=self._model.device,
        )
        made = []
        for sentence, example, (_, prediction) in zip(sentences, examples, found, strict=True):
            assert isinstance(prediction, EntityPrediction)
            about = self._about(sentence, example, has_image=prediction.has_image)
            spans = ((sentence.span((entity.start, entity.end)), entity) for entity in prediction.entities)
            made.append(
                Entities(
                    [FoundEntity(**vars(s), type=e.type, score=e.score) for s, e in spans],
                    SeenSentence(**about),
                )
            )
        return made

    def relations_batch(self, queries: Sequence[Query], *, batch: int = 32) -> list[FoundRelation]:
        """Return the relation of each query; of an unreadable image, `image_error` says so.

        Raises:
            InputError: a mention is not there or is there several times.
            WeightsError: the model finds entities.
        """
        self._require("relations")
        sentences = [self._sentence(query) for query in queries]
        mentions = [_mentions(sentence) for sentence in sentences]
        examples = [
            self._encoder.relation(
                sentence.post, head=_words(sentence.post, head), tail=_words(sentence.post, tail)
            )
            for sentence, (head, tail) in zip(sentences, mentions, strict=True)
        ]
        order = evaluation_rows(examples, batch=batch, rank=0, size=1)
        vision, device = self._model.encoder.vision, self._model.device
        made: dict[int, FoundRelation] = {}
        for rows, _, output in outputs(
            self._model, self._rows(examples), order, vision=vision, device=device
        ):
            probabilities_BR = output.logits.float().softmax(-1).tolist()
            for row, has_image, values in zip(rows.rows, has_images(rows), probabilities_BR, strict=True):
                ranked = sorted(zip(self.labels, values, strict=True), key=lambda item: -item[1])
                head, tail = mentions[row]
                made[row] = FoundRelation(
                    **self._about(sentences[row], examples[row], has_image=has_image),
                    relation=ranked[0][0],
                    probability=ranked[0][1],
                    probabilities=dict(ranked),
                    head=sentences[row].span(head),
                    tail=sentences[row].span(tail),
                )
        return [made[row] for row in range(len(examples))]

    def mentions(self, query: Query) -> tuple[FoundSpan, FoundSpan]:
        """Return the head and the tail of `query` as whole words, without running the model.

        Raises:
            InputError: one is not given, not there, or there several times.
        """
        sentence = self._sentence(query)
        head, tail = _mentions(sentence)
        return sentence.span(head), sentence.span(tail)

    def _require(self, task: Task) -> None:
        if task != self.task:
            ask = "entities()" if self.task == "entities" else "relation(), with head and tail"
            raise WeightsError(
                f"the model in {self.folder} was fine-tuned for {self.task}, not for {task}: ask it for {ask}, or load "
                f"a model that was fine-tuned for {task}"
            )

    def _sentence(self, query: Query | str) -> _Sentence:
        query = Query(query) if isinstance(query, str) else query
        if isinstance(query.text, str):
            text, spans = query.text, split_words(query.text)
            words = tuple(text[start:end] for start, end in spans)
        else:
            words = tuple(query.text)
            text, spans = join_words(words)
        if not is_text(text) or not all(words):
            raise InputError(
                f"a sentence must be text that UTF-8 can hold, or words that are not empty: {text!a}"
            )
        image = None if query.image is None else Path(query.image)
        if image is not None and self._pictures is None:
            self._warn_once(f"the model in {self.folder} reads text only: photos are left alone")
            image = None
        elif (
            image is not None
            and self._pictures
            and self._pictures.max_crops
            and query.boxes is None
            and not query.crops
        ):
            self._warn_once(
                f"the model in {self.folder} was trained with up to {self._pictures.max_crops} objects beside a photo "
                'and sees the photo alone: give their "boxes", or "crops"'
            )
        post = Post(id="", words=words, image=image, boxes=query.boxes, crops=query.crops)
        return _Sentence(query, text, spans, post)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warn(text)
        self._warned.add(text)

    def _rows(self, examples: Sequence[Example]) -> Rows:
        return Rows(examples, pad_id=self._found.tokenizer.pad_token_id, pictures=self._pictures)

    def _about(self, sentence: _Sentence, example: Example, *, has_image: bool) -> dict[str, Any]:
        image, error = sentence.post.image, None
        if has_image and self._pictures:
            crops = sentence.post.crops[: self._pictures.max_crops]
            error = next(filter(None, map(read_error, crops)), None)
        elif image is not None:
            error = image_error(image)
        elif sentence.post.crops and self._pictures:
            error = "crops are seen beside a photo alone"
        return {
            "text": sentence.text,
            "words": sentence.post.words,
            "has_image": has_image,
            "image_error": error,
            "cut_words": example.cut_words,
        }


def _mentions(sentence: _Sentence) -> tuple[tuple[int, int], tuple[int, int]]:
    return sentence.mention("head"), sentence.mention("tail")


def _words(post: Post, span: tuple[int, int]) -> WordSpan:
    return WordSpan(*span, post.words[slice(*span)])


def _require_image(error: str | None) -> None:
    if error is not None:
        raise InputError(f"the photo was not seen: {error}; give another one, or none")
