"""The order of training over ranks, padding, and batches of both tasks."""

from typing import Any

import pytest
import torch

from promptmeup.extraction.batches import (
    Rows,
    collate,
    evaluation_rows,
    load,
    steps_per_epoch,
    training_rows,
)
from promptmeup.extraction.examples import Example, SentenceEncoder
from promptmeup.records import Post, WordSpan


def order(
    size: int, *, n: int = 11, batch: int = 4, start: int = 0, stop: int = 9
) -> list[list[list[tuple[int, float]]]]:
    """Rows of each step and rank."""
    ranks = [
        list(training_rows(n, batch=batch, seed=5, start=start, stop=stop, rank=rank, size=size))
        for rank in range(size)
    ]
    return [list(step) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_any_number_of_ranks_has_the_same_batches_and_weights(size: int) -> None:
    for alone, shared in zip(order(1), order(size), strict=True):
        assert len({len(rows) for rows in shared}) == 1, "ranks wait for each other"
        counted = sorted(row for rows in shared for row, weight in rows if weight)
        assert counted == sorted(row for row, _ in alone[0])
        # the mean over ranks of the weighted sums is the mean over the batch
        weights = [weight / size for rows in shared for _, weight in rows if weight]
        assert weights == pytest.approx([1 / len(counted)] * len(counted))


def test_an_epoch_sees_each_row_once_in_an_order_of_its_own() -> None:
    steps = [[row for row, _ in step[0]] for step in order(1)]
    per_epoch = steps_per_epoch(11, 4)
    assert per_epoch == 3
    epochs = [[row for step in steps[e * 3 : e * 3 + 3] for row in step] for e in range(3)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_resumed_run_goes_on_with_the_same_batches() -> None:
    assert order(2, start=4) == order(2)[4:]


@pytest.mark.parametrize(("count", "size", "batch"), [(10, 1, 4), (10, 3, 2), (2, 4, 8)])
def test_evaluation_sees_each_row_once_in_equally_many_batches(count: int, size: int, batch: int) -> None:
    examples = [
        Example("entities", Post(id=str(i), words=("a",)), (0,) * (count - i), ()) for i in range(count)
    ]
    ranks = [list(evaluation_rows(examples, batch=batch, rank=rank, size=size)) for rank in range(size)]
    shapes = {tuple(len(rows) for rows in rank) for rank in ranks}
    assert len(shapes) == 1
    seen = sorted(row for rank in ranks for rows in rank for row, weight in rows if weight)
    assert seen == list(range(count))


@pytest.fixture
def encoder(tokenizer: Any) -> SentenceEncoder:
    return SentenceEncoder(tokenizer, labels=("O", "B-PER", "I-PER"), max_tokens=16)


def test_tagged_sentences_side_by_side(encoder: SentenceEncoder) -> None:
    examples = [
        encoder.entities(Post(id="1", words=("Unbelievableness", "x")), tags=("B-PER", "O")),
        encoder.entities(Post(id="2", words=("y",) * 20), tags=("I-PER",) * 20),
    ]
    found = collate(examples, pad_id=0)
    assert found["input_ids"].shape == (2, 16)
    assert found["attention_mask"].sum(1).tolist() == [len(example.tokens) for example in examples]
    for row, example in enumerate(examples):
        places = [place for place in example.places if place >= 0]
        assert found["word_mask"][row].nonzero().flatten().tolist() == places
        assert found["labels"][row][found["word_mask"][row]].tolist() == list(example.target[: len(places)])


def test_marked_sentences_side_by_side(encoder: SentenceEncoder) -> None:
    spans = WordSpan(0, 1, ("a",)), WordSpan(1, 2, ("b",))
    examples = [
        encoder.relation(Post(id="1", words=("a", "b")), head=spans[i], tail=spans[1 - i], relation="B-PER")
        for i in range(2)
    ]
    found = collate(examples, pad_id=0)
    assert found["marker_positions"].tolist() == [[1, 4], [4, 1]]
    assert found["labels"].tolist() == [1, 1]
    unlabelled = encoder.relation(Post(id="1", words=("a", "b")), head=spans[0], tail=spans[1])
    assert "labels" not in collate([unlabelled], pad_id=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_keep_the_order(encoder: SentenceEncoder, workers: int) -> None:
    examples = [
        encoder.entities(Post(id=str(i), words=("w",) * (i + 1)), tags=("O",) * (i + 1)) for i in range(9)
    ]
    rows = Rows(examples, pad_id=0, pictures=None)
    found = list(
        load(rows, training_rows(9, batch=4, seed=1, start=0, stop=3, rank=0, size=1), workers=workers)
    )
    expected = list(training_rows(9, batch=4, seed=1, start=0, stop=3, rank=0, size=1))
    assert [list(batch.rows) for batch in found] == [[row for row, _ in step] for step in expected]
    assert [batch.keys for batch in found] == [tuple(str(row) for row in batch.rows) for batch in found]
    assert all(batch.inputs["attention_mask"].dtype == torch.bool for batch in found)
