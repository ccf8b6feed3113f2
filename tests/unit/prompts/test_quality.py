"""Statistics of soft labels, by hand."""

import math

import numpy as np
import pytest

from promptmeup.prompts.quality import agreement, dominance_warning, entropies, statistics
from promptmeup.shard_format import label_dtype


def labels(*rows: tuple[list[int], list[float]]) -> np.ndarray:
    kept = len(rows[0][0]) if rows else 2
    array = np.zeros(len(rows), dtype=label_dtype(kept))
    for row, (ids, probs) in enumerate(rows):
        array[row] = (ids, probs)
    return array


def test_entropy_spreads_the_rest_over_the_other_prompts():
    # 0.5 and 0.25 are stored; 0.25 is left for 4 others, 0.0625 each
    expected = 0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(16)
    assert entropies(labels(([0, 3], [0.5, 0.25])), num_prompts=6) == pytest.approx(expected)


def test_entropy_at_its_ends():
    assert entropies(labels(([4, 0], [1.0, 0.0])), num_prompts=6) == pytest.approx(0)
    assert entropies(labels(([4, 0], [0.25, 0.25])), num_prompts=4) == pytest.approx(math.log(4))
    # every prompt is stored and float16 lost a little: still a distribution
    lossy = np.nextafter(np.float16(0.5), np.float16(0))
    assert entropies(labels(([0, 1], [lossy, lossy])), num_prompts=2) == pytest.approx(math.log(2))


def test_statistics_over_shards_by_hand():
    first = labels(([2, 0], [0.5, 0.25]), ([2, 1], [0.125, 0.125]))
    second = labels(([1, 0], [0.25, 0.25]), ([2, 0], [1.0, 0.0]))
    found = statistics([first, labels(), second], num_prompts=4)
    each = [
        0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8),
        0.25 * math.log(8) + 0.75 * math.log(2 / 0.75),
        math.log(4),
        0.0,
    ]
    assert found == pytest.approx(
        {"rows": 4, "entropy": sum(each) / 4, "share_confident": 0.75, "top_share": 0.75, "top_prompt": 2}
    )
    # means over labels, not means over shards
    split = statistics([first[:1], first[1:], second], num_prompts=4)
    assert split == pytest.approx(found)


def test_confidence_goes_by_the_probabilitys_value():
    # the public release compared the arg-max INDEX with 0.2: it dropped prompt 0 and kept all others
    sure_of_prompt_0 = labels(([0, 1], [0.875, 0.125]))
    unsure_of_prompt_3 = labels(([3, 1], [0.125, 0.125]))
    assert statistics([sure_of_prompt_0], num_prompts=10)["share_confident"] == 1
    assert statistics([unsure_of_prompt_3], num_prompts=10)["share_confident"] == 0
    assert statistics([unsure_of_prompt_3], num_prompts=10, min_confidence=0.125)["share_confident"] == 1


def test_no_labels_give_numbers_all_the_same():
    assert statistics([], num_prompts=3) == {
        "rows": 0,
        "entropy": 0,
        "share_confident": 0,
        "top_share": 0,
        "top_prompt": -1,
    }


def test_a_dominating_prompt_is_named():
    names = ("cat", "ice cream", "dog")
    found = {"rows": 200.0, "entropy": 1.0, "share_confident": 1.0, "top_share": 0.73, "top_prompt": 1.0}
    line = dominance_warning(found, names, kind="objects")
    assert line is not None
    assert line.startswith("73% of the 200 labels of objects name the same prompt, 'ice cream'")
    assert dominance_warning(found | {"top_share": 0.5}, names, kind="objects") is None
    assert dominance_warning(found | {"rows": 3.0}, names, kind="objects") is None
    assert dominance_warning(statistics([], num_prompts=3), names, kind="objects") is None


def test_agreement_by_hand():
    # photo 0's captions name prompts 1 and 2, photo 1's prompt 3, photo 2's none
    named = np.zeros((3, 6), dtype=bool)
    named[0, [1, 2]] = named[1, 3] = True
    ids = np.array([[1, 0, 4, 5, 2], [0, 4, 5, 2, 1], [4, 3, 0, 1, 2], [3, 0, 1, 2, 4]])
    found = agreement(ids, samples_N=np.array([0, 0, 1, 2]), named_SK=named)
    assert found["agreement_rows"] == 3
    assert found["agreement_top1"] == pytest.approx(1 / 3)
    assert found["agreement_top5"] == 1
    # with the other photo's captions: 3 is in the first five of neither label of photo 0, 1 in that of photo 1
    assert found["agreement_top1_by_chance"] == 0
    assert found["agreement_top5_by_chance"] == pytest.approx(1 / 3)


def test_a_teacher_that_always_says_the_most_frequent_name_is_at_chance():
    rng = np.random.default_rng(0)
    named = rng.random((400, 30)) < np.linspace(0.6, 0.01, 30)
    samples = np.repeat(np.arange(400), 3)
    same = np.tile(np.arange(5), (len(samples), 1))
    found = agreement(same, samples_N=samples, named_SK=named)
    assert found["agreement_top1"] == pytest.approx(found["agreement_top1_by_chance"], abs=0.03)
    right = np.argsort(~named[samples] + 0.01 * rng.random((len(samples), 30)), axis=1)[:, :5]
    assert agreement(right, samples_N=samples, named_SK=named)["agreement_top1"] == 1


def test_agreement_without_names_says_that_nothing_was_looked_at():
    nothing = np.zeros((2, 4), dtype=bool)
    found = agreement(np.array([[0, 1]]), samples_N=np.array([1]), named_SK=nothing)
    assert found == {"agreement_rows": 0.0}
