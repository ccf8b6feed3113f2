"""Failure signatures: said once when they begin, not in every line, and not for one unlucky batch."""

import re

import pytest

from promptmeup.training.watch import WARM, Watch


def _after(watch: Watch, lines: int, **metrics: float) -> list[str]:
    return [text for _ in range(lines) for text in watch.training(metrics)]


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("object_label_top_share", 0.1, 0.9, r"one prompt is the most probable of 9\d% of the object labels"),
        ("relation_label_kept", 0.5, 0.01, r"only 1\.\d% of the relation labels reach data\.min_confidence"),
        ("temperature", 0.07, 0.001, r"the temperature has reached an end of its range \(0\.001"),
        ("object_temperature", 0.07, 0.5, r"the object temperature has reached an end of its range"),
    ],
)
def test_signatures_are_said_once(name: str, good: float, bad: float, message: str) -> None:
    watch = Watch()
    assert _after(watch, 50, **{name: good}) == []
    fresh = Watch()
    assert _after(fresh, WARM - 1, **{name: bad}) == []
    (said,) = _after(fresh, 100, **{name: bad})
    assert re.search(message, said)
    # it goes away, and comes back
    assert _after(fresh, 200, **{name: good}) == []
    assert len(_after(fresh, 200, **{name: bad})) == 1


def test_a_temperature_that_is_fixed_may_be_at_an_end() -> None:
    watch = Watch(learns_temperature=False)
    fixed = {"temperature": 0.001, "object_temperature": 0.001, "relation_temperature": 0.001}
    assert _after(watch, 100, **fixed) == []
    assert len(_after(watch, 100, **fixed, object_label_top_share=0.9)) == 1


def test_one_unlucky_batch_is_no_signature() -> None:
    watch = Watch()
    _after(watch, 30, object_label_top_share=0.2)
    assert watch.training({"object_label_top_share": 1.0}) == []


def test_evaluation_signatures() -> None:
    watch = Watch()
    good = {"mean_recall": 0.5, "uniformity_image": -2.5, "uniformity_text": -2.0}
    assert watch.evaluation(good) == []
    (said,) = watch.evaluation(good | {"mean_recall": 0.3})
    assert "recall on the dev split is 0.300, its best was 0.500" in said
    assert watch.evaluation(good | {"mean_recall": 0.3}) == []
    (said,) = watch.evaluation(good | {"uniformity_text": -0.01})
    assert "the text vectors of the dev split lie close together" in said
