"""Sentences to token ids: where each word's first token is, or where the two mentions begin."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promptmeup.models.extraction import MARKERS, Task
from promptmeup.records import Post, RelationInstance, TaggedSentence, WordSpan


@dataclass(frozen=True)
class Example:
    """One sentence, ready for a model."""

    task: Task
    post: Post
    tokens: tuple[int, ...]
    """special tokens included"""
    places: tuple[int, ...]
    """entities: the position of each word's first token, -1 where it was cut off; relations: of <s> and <o>"""
    target: tuple[int, ...] = ()
    """entities: a tag a word; relations: the one relation; -1 where the label is none of the model's"""
    cut_words: int = 0
    """words that the model does not see, or not whole, since the sentence is too long for it"""


class SentenceEncoder:
    """Makes examples with a model's tokenizer and labels; adds the markers to the tokenizer where it lacks them."""

    def __init__(self, tokenizer: Any, *, labels: Sequence[str], max_tokens: int) -> None:
        # data workers are forked; the tokenizer's own threads would not be there and it would wait for them
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer.add_tokens(list(MARKERS), special_tokens=True)
        self.tokenizer = tokenizer
        self._markers = tuple(tokenizer.convert_tokens_to_ids(list(MARKERS)))
        self._ids = {label: i for i, label in enumerate(labels)}
        self._budget = max_tokens - 2
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def entities(self, post: Post, *, tags: Sequence[str] | None = None) -> Example:
        """Return an example for tagging; words beyond the model's length have no place."""
        pieces = self._pieces(post.words)
        tokens = [self._cls]
        places: list[int] = []
        for piece in pieces:
            fits = len(tokens) + len(piece) <= self._budget + 1
            # a word that is cut in the middle is cut off, and all behind it with it
            cut = bool(places) and places[-1] < 0
            places.append(len(tokens) if fits and not cut else -1)
            if places[-1] >= 0:
                tokens += piece
        target = tuple(self._ids.get(tag, -1) for tag in tags) if tags is not None else ()
        cut_words = sum(place < 0 for place in places)
        return Example("entities", post, (*tokens, self._sep), tuple(places), target, cut_words)

    def relation(self, post: Post, *, head: WordSpan, tail: WordSpan, relation: str | None = None) -> Example:
        """Return an example with <s> </s> about the head and <o> </o> about the tail.

        Also where a mention ends the sentence. Mentions may overlap. Of a sentence that is too long, a part with both
        start markers is kept.
        """
        pieces = self._pieces(post.words)
        s_open, s_close, o_open, o_close = self._markers
        tokens: list[int] = []
        firsts: list[int] = []  # of each word
        starts = [0, 0]
        for place in range(len(pieces) + 1):
            # what began last ends first, so that mentions which do not cross are nested
            closing = sorted([(tail, o_close), (head, s_close)], key=lambda item: -item[0].start)
            tokens += [token for span, token in closing if span.end == place]
            opening = sorted([(head, s_open, 0), (tail, o_open, 1)], key=lambda item: -item[0].end)
            for span, token, which in opening:
                if span.start == place:
                    starts[which] = len(tokens)
                    tokens.append(token)
            if place < len(pieces):
                firsts.append(len(tokens))
                tokens += pieces[place]
        kept, starts = _window(len(tokens), starts, self._budget)
        seen = set(kept)
        cut_words = sum(
            not seen.issuperset(range(first, first + len(piece)))
            for first, piece in zip(firsts, pieces, strict=True)
        )
        target = (self._ids.get(relation, -1),) if relation is not None else ()
        places = tuple(start + 1 for start in starts)
        found = (self._cls, *(tokens[i] for i in kept), self._sep)
        return Example("relations", post, found, places, target, cut_words)

    def encode(self, row: Post) -> Example:
        """Return the example of a labelled row."""
        if isinstance(row, RelationInstance):
            return self.relation(row, head=row.head, tail=row.tail, relation=row.relation)
        assert isinstance(row, TaggedSentence)
        return self.entities(row, tags=row.tags)

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each word; a word that the tokenizer reads as nothing is unknown."""
        if not words:
            return []
        found = self.tokenizer(list(words), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [list(ids) or [self.tokenizer.unk_token_id] for ids in found]


def _window(length: int, starts: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Return which of `length` tokens are kept, at most `budget` that hold both starts, and where the starts are then.

    They are those around the starts, or those behind each where the two are too far apart.
    """
    if length <= budget:
        return list(range(length)), starts
    first, last = min(starts), max(starts)
    between = last - first + 1
    if between <= budget:
        begin = min(max(0, first - (budget - between) // 2), length - budget)
        return list(range(begin, begin + budget)), [start - begin for start in starts]
    half = budget // 2
    end = min(length, last + budget - half)
    moved = {first: 0, last: half}
    return [*range(first, first + half), *range(last, end)], [moved[start] for start in starts]
