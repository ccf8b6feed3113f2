from pathlib import Path
from typing import Any

import pytest

from promptmeup.records import RelationInstance, WordSpan
from tests.benchmarks.peers import entity_markers
from tests.benchmarks.peers.entity_markers import PeerResult, marked

RELATIONS = ("None", "/per/loc/place_of_residence", "/per/org/member_of")


def instance(
    words: str, head: tuple[int, int], tail: tuple[int, int], relation: str = "None"
) -> RelationInstance:
    split = tuple(words.split(" "))
    return RelationInstance(
        id="1",
        words=split,
        head=WordSpan(*head, split[slice(*head)]),
        tail=WordSpan(*tail, split[slice(*tail)]),
        relation=relation,
    )


INSTANCES = [
    instance(text.format(name), head, tail, relation)
    for name in ("Ada", "Grace", "Marie", "Emmy")
    for text, head, tail, relation in (
        ("{} lives in Rome with Bob", (0, 1), (3, 4), RELATIONS[1]),
        ("{} lives in Rome with Bob", (5, 6), (0, 1), RELATIONS[0]),
        ("the Royal Society elects {}", (4, 5), (1, 3), RELATIONS[2]),
    )
]


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ((0, 1), (3, 5), "<s> a </s> b c <o> d e </o>"),
        ((3, 5), (0, 1), "<o> a </o> b c <s> d e </s>"),
        ((1, 2), (2, 3), "a <s> b </s> <o> c </o> d e"),
        ((2, 3), (1, 2), "a <o> b </o> <s> c </s> d e"),
        ((1, 3), (1, 3), "a <s> <o> b c </o> </s> d e"),
        ((1, 4), (1, 2), "a <s> <o> b </o> c d </s> e"),
        ((1, 2), (1, 4), "a <o> <s> b </s> c d </o> e"),
        ((0, 5), (3, 5), "<s> a b c <o> d e </o> </s>"),
        ((3, 5), (0, 5), "<o> a b c <s> d e </s> </o>"),
        ((0, 3), (2, 5), "<s> a b <o> c </s> d e </o>"),
        ((2, 5), (0, 3), "<o> a b <s> c </o> d e </s>"),
    ],
)
def test_markers_stand_around_their_spans(
    head: tuple[int, int], tail: tuple[int, int], expected: str
) -> None:
    words, start_of_head, start_of_tail = marked(instance("a b c d e", head, tail))
    assert " ".join(words) == expected
    assert (words[start_of_head], words[start_of_tail]) == ("<s>", "<o>")


def test_a_marker_that_the_sentence_holds_is_taken_for_none() -> None:
    words, head, tail = marked(instance("<s> a <o> b", (1, 2), (3, 4)))
    assert " ".join(words) == "<s> <s> a </s> <o> <o> b </o>"
    assert (head, tail) == (1, 5)


def train(encoder: Path, **changes: Any) -> PeerResult:
    values: dict[str, Any] = {"epochs": 2, "batch": 4, "lr": 5e-3, "head_lr": 2e-2, "warmup": 0.1}
    values |= {"weight_decay": 0.01, "max_tokens": 64, "seed": 0}
    return entity_markers.train(
        INSTANCES, INSTANCES, encoder=encoder, relations=RELATIONS, **(values | changes)
    )


def test_it_learns_a_dozen_instances_by_heart(tiny_bert: Path) -> None:
    """Two of three have the same words: only the markers tell them apart."""
    result = train(tiny_bert, epochs=15)
    assert result.relations == [instance.relation for instance in INSTANCES]


def test_every_epoch_has_a_prediction_for_every_instance(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = train(tiny_bert), train(tiny_bert)
    assert one.by_epoch == two.by_epoch
    assert [len(relations) for relations in one.by_epoch] == [len(INSTANCES)] * 2
    assert one.relations == one.by_epoch[-1]
    assert len(one.epoch_seconds) == 2
    assert {relation for relations in one.by_epoch for relation in relations} <= set(RELATIONS)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


def test_sentences_longer_than_the_limit_still_have_a_prediction(tiny_bert: Path) -> None:
    assert len(train(tiny_bert, max_tokens=6).relations) == len(INSTANCES)
