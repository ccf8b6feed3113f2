"""Soft labels: the numbers, and who is compared with what."""

import numpy as np
import pytest
import torch

from promptmeup.errors import ShardError
from promptmeup.prompts.labels import LabelConfig, label_shard, label_temperature, round_down, soft_labels
from promptmeup.records import Banks
from promptmeup.shard_format import label_dtype
from tests.support.colours import BANKS, BLUE, ENTITIES, GREEN, RED, RELATIONS, ColourTeacher, photo

CONFIG = LabelConfig(splits=("train",), temperature=0.05, num_kept=2, batch=3)


def similarities(rows: int, prompts: int, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (rows, prompts))).float()


def softmax(similarity: torch.Tensor, temperature: float) -> np.ndarray:
    logits = similarity.numpy().astype(np.float64) / temperature
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("prompts", "kept"), [(1000, 32), (369, 32), (65535, 5), (5, 32), (32, 32), (2, 1)])
def test_labels_are_the_top_of_the_softmax(prompts, kept):
    # any number of prompts; the public release knew 1000 alone
    similarity = similarities(20, prompts)
    labels = soft_labels(similarity, temperature=0.07, num_kept=kept)
    stored = min(kept, prompts)
    assert labels.dtype == label_dtype(stored)
    expected = softmax(similarity, 0.07)
    order = np.argsort(-expected, axis=1)[:, :stored]
    np.testing.assert_array_equal(labels["ids"], order)
    np.testing.assert_allclose(
        labels["probs"], np.take_along_axis(expected, order, axis=1), rtol=1.1e-3, atol=1e-7
    )


def test_stored_probabilities_are_descending_and_never_sum_to_more_than_one():
    for seed in range(5):
        for temperature in (0.005, 0.07, 0.5):
            labels = soft_labels(similarities(200, 8, seed=seed), temperature=temperature, num_kept=8)
            sums = labels["probs"].astype(np.float64).sum(axis=1)
            assert sums.max() <= 1
            assert sums.min() > 0.99
            assert (np.diff(labels["probs"].astype(np.float64), axis=1) <= 0).all()


def test_rounding_never_makes_a_sum_larger_than_one():
    # the second row is what float32 makes of 1 - 2^-24 and 2^-24: it sums to more than one by itself
    probs = np.array([[0.7, 0.3, 0.0], [1.0, 2**-24, 0.0], [0.5, 0.5, 2**-24], [0.5, 0.25, 0.25]], np.float32)
    rounded = round_down(probs)
    assert rounded.dtype == np.float16
    assert rounded.astype(np.float64).sum(axis=1).max() <= 1
    assert (rounded <= probs).all()
    assert (np.diff(rounded.astype(np.float64), axis=1) <= 0).all()
    np.testing.assert_allclose(rounded, probs, atol=5e-4)
    assert rounded[3].tolist() == [0.5, 0.25, 0.25]


def test_equal_similarities_keep_the_prompts_order():
    labels = soft_labels(torch.zeros(1, 500), temperature=0.1, num_kept=4)
    assert labels["ids"].tolist() == [[0, 1, 2, 3]]


def test_bfloat16_similarities_are_normalised_in_float32():
    labels = soft_labels(similarities(50, 200).bfloat16(), temperature=0.02, num_kept=200)
    assert labels["probs"].astype(np.float64).sum(axis=1).min() > 0.99


def test_a_lower_temperature_is_surer():
    similarity = similarities(10, 50)
    sharp, soft = (soft_labels(similarity, temperature=t, num_kept=5) for t in (0.02, 0.2))
    assert (sharp["probs"][:, 0] > soft["probs"][:, 0]).all()
    np.testing.assert_array_equal(sharp["ids"][:, 0], soft["ids"][:, 0])


def test_no_rows_give_no_labels():
    assert soft_labels(torch.zeros(0, 7), temperature=0.1, num_kept=3).shape == (0,)


def test_the_teachers_own_temperature_unless_another_is_set():
    teacher = ColourTeacher()
    assert label_temperature(CONFIG, teacher) == 0.05
    assert label_temperature(LabelConfig(splits=("train",)), teacher) == teacher.temperature


def test_objects_meet_entities_and_images_meet_relations():
    """The public release built both teachers alike: objects were compared with relations."""
    # a blue photo with a small red object: the crop is red, the photo as a whole is blue
    samples = [photo(BLUE, (RED, (4, 4, 12, 12)))]
    objects, images = label_shard(samples, ColourTeacher(), BANKS, CONFIG)
    assert ENTITIES[objects["ids"][0, 0]] == "a red bus"
    assert RELATIONS[images["ids"][0, 0]] == "cold place"
    assert objects["probs"][0, 0] > 0.9


def test_the_image_is_seen_whole_with_its_objects():
    """The public release erased the object before the teacher of relations saw the image."""
    # most of the photo is the red object; without it, or in its upper left corner, the photo is blue
    _, images = label_shard([photo(BLUE, (RED, (18, 0, 64, 48)))], ColourTeacher(), BANKS, CONFIG)
    assert RELATIONS[images["ids"][0, 0]] == "hot place"


def test_the_teacher_sees_normalised_images_of_its_own_size():
    teacher = ColourTeacher()
    label_shard([photo(BLUE, (RED, (4, 4, 12, 12)))], teacher, BANKS, CONFIG)
    assert {tuple(shape[1:]) for shape in teacher.shapes} == {(3, 8, 8)}
    assert teacher.lowest == pytest.approx((0 - 0.5) / 0.25)
    assert teacher.highest == pytest.approx((1 - 0.5) / 0.25)


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_rows_follow_samples_and_boxes_at_any_batch(batch):
    samples = [
        photo(GREEN, (RED, (0, 0, 10, 10)), (BLUE, (20, 20, 30, 30))),
        photo(RED),  # without objects
        photo(BLUE, (GREEN, (8, 8, 24, 24)), (RED, (30, 30, 40, 40)), (GREEN, (50, 8, 60, 20))),
    ]
    teacher = ColourTeacher()
    config = CONFIG.model_copy(update={"batch": batch})
    objects, images = label_shard(iter(samples), teacher, BANKS, config)
    names = [ENTITIES[i] for i in objects["ids"][:, 0]]
    assert names == ["a red bus", "the blue sea", "green grass", "a red bus", "green grass"]
    assert [RELATIONS[i] for i in images["ids"][:, 0]] == ["green place", "hot place", "cold place"]
    assert max(shape[0] for shape in teacher.shapes) <= batch


def test_no_objects_at_all():
    objects, images = label_shard([photo(RED), photo(BLUE)], ColourTeacher(), BANKS, CONFIG)
    assert objects.shape == (0,)
    assert objects.dtype == label_dtype(2)
    assert images.shape == (2,)


def test_a_bank_smaller_than_num_kept_is_stored_whole():
    banks = Banks(BANKS.entities_KD, BANKS.relations_KD[:2])
    config = CONFIG.model_copy(update={"num_kept": 32})
    objects, images = label_shard([photo(BLUE, (RED, (4, 4, 12, 12)))], ColourTeacher(), banks, config)
    assert objects.dtype == label_dtype(3)
    assert images.dtype == label_dtype(2)


def test_an_image_that_cannot_be_decoded():
    with pytest.raises(ShardError, match="cannot be decoded"):
        label_shard([(b"\xff\xd8 broken", np.zeros((0, 4)))], ColourTeacher(), BANKS, CONFIG)
