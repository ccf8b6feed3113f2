"""Sentences to tokens: first sub-words, markers, what is cut off."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup.extraction.examples import SentenceEncoder, _window
from promptmeup.models.text import load_tokenizer
from promptmeup.records import Post, RelationInstance, TaggedSentence, WordSpan
from tests.support.tiny_alignment import TINY

WORDS = ("A", "bb", "CCC", "dd", "end")
LABELS = ("O", "B-PER", "I-PER")


def encoder(tokenizer: Any, *, max_tokens: int = 64) -> SentenceEncoder:
    return SentenceEncoder(tokenizer, labels=LABELS, max_tokens=max_tokens)


def sentence(*words: str) -> Post:
    return Post(id="1", words=words)


def marked(tokenizer: Any, head: tuple[int, int], tail: tuple[int, int]) -> str:
    spans = [WordSpan(start, end, WORDS[start:end]) for start, end in (head, tail)]
    found = encoder(tokenizer).relation(sentence(*WORDS), head=spans[0], tail=spans[1])
    tokens = tokenizer.convert_ids_to_tokens(found.tokens)
    assert [tokens[place] for place in found.places] == ["<s>", "<o>"]
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    return " ".join(tokens[1:-1]).replace(" ##", "")


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ((0, 1), (2, 3), "<s> a </s> bb <o> ccc </o> dd end"),
        ((2, 3), (0, 1), "<o> a </o> bb <s> ccc </s> dd end"),
        # the peers' code leaves the end marker out where a mention ends the sentence
        ((0, 2), (4, 5), "<s> a bb </s> ccc dd <o> end </o>"),
        ((0, 1), (1, 2), "<s> a </s> <o> bb </o> ccc dd end"),
        # overlapping: nested, equal, crossing
        ((1, 2), (1, 3), "a <o> <s> bb </s> ccc </o> dd end"),
        ((1, 4), (2, 3), "a <s> bb <o> ccc </o> dd </s> end"),
        ((2, 4), (3, 4), "a bb <s> ccc <o> dd </o> </s> end"),
        ((1, 3), (1, 3), "a <s> <o> bb ccc </o> </s> dd end"),
        ((1, 3), (2, 4), "a <s> bb <o> ccc </s> dd </o> end"),
    ],
)
def test_markers(tokenizer: Any, head: tuple[int, int], tail: tuple[int, int], expected: str) -> None:
    assert marked(tokenizer, head, tail) == expected


def test_what_looks_like_a_marker_in_a_tweet_is_none(tokenizer: Any) -> None:
    words = ("<s>", "[SEP]", "x")
    spans = WordSpan(2, 3, ("x",)), WordSpan(0, 1, ("<s>",))
    found = encoder(tokenizer).relation(sentence(*words), head=spans[0], tail=spans[1])
    tokens = tokenizer.convert_ids_to_tokens(found.tokens)
    assert tokens.count("<s>") == 1
    assert tokens.count("[SEP]") == 1


def test_each_word_is_tagged_at_its_first_token(tokenizer: Any) -> None:
    words = ("Nakamurayama", "\xa0", "ok")
    found = encoder(tokenizer).entities(sentence(*words), tags=("B-PER", "I-PER", "B-NEW"))
    tokens = tokenizer.convert_ids_to_tokens(found.tokens)
    assert [tokens[place] for place in found.places] == ["nakamura", "[UNK]", "ok"]
    assert found.target == (1, 2, -1), "a tag that the model does not know is none of its"


def test_words_beyond_the_length_have_no_place(tokenizer: Any) -> None:
    found = encoder(tokenizer, max_tokens=16).entities(sentence(*["w"] * 13, "unbelievableness", "a"))
    assert len(found.tokens) <= 16
    assert found.places[:13] == tuple(range(1, 14))
    assert found.places[13:] == (-1, -1), "nothing behind a word that was cut off"
    exact = encoder(tokenizer, max_tokens=16).entities(sentence(*["w"] * 14))
    assert -1 not in exact.places
    assert len(exact.tokens) == 16


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_window_holds_both_starts(data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 80))
    budget = data.draw(st.integers(14, 40))
    first, last = data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2, unique=True))
    cut, starts = _window(length, [first, last], budget)
    assert len(cut) <= budget
    assert [cut[place] for place in starts] == [first, last]
    # the later one has the larger half of an odd budget, and less where the sentence ends before
    assert len(cut) == min(length, budget) or max(first, last) + budget - budget // 2 > length


def test_rows_of_both_tasks(tokenizer: Any) -> None:
    tagged = TaggedSentence(id="1", words=("Ada", "x"), tags=("B-PER", "O"))
    related = RelationInstance(
        id="2",
        words=("Ada", "x"),
        head=WordSpan(0, 1, ("Ada",)),
        tail=WordSpan(1, 2, ("x",)),
        relation="B-PER",
    )
    assert encoder(tokenizer).encode(tagged).target == (1, 0)
    found = encoder(tokenizer).encode(related)
    assert (found.task, found.target, found.places) == ("relations", (1,), (1, 4))


def test_a_second_encoder_adds_no_second_markers() -> None:
    tokenizer = load_tokenizer(TINY.text)
    size = len(tokenizer)
    encoder(tokenizer)
    encoder(tokenizer)
    assert len(tokenizer) == size + 4
