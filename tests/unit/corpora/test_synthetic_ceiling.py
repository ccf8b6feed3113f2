"""The retrieval ceiling, by hand and against an oracle that really ranks."""

import random

import pytest

from promptmeup.corpora.synthetic_ceiling import Told, retrieval_ceiling


def test_by_hand() -> None:
    images = [frozenset({"Ann", "Fair"}), frozenset({"Ann", "Race"})]
    captions = [
        Told(0, frozenset({"Ann", "Fair"})),  # true of image 0 alone
        Told(0, frozenset({"Ann"})),  # true of both
        Told(1, frozenset({"Ann"})),
    ]
    ceiling = retrieval_ceiling(images, captions, ks=(1, 2))
    assert ceiling["text_to_image"] == {"R@1": pytest.approx((1 + 0.5 + 0.5) / 3), "R@2": 1.0}
    # image 0 has a caption of its own only; image 1 draws one of two, then two of two
    assert ceiling["image_to_text"] == {"R@1": pytest.approx((1 + 0.5) / 2), "R@2": 1.0}


def test_equal_images_share_the_credit() -> None:
    images = [frozenset({"Ann"})] * 20
    captions = [Told(image, frozenset({"Ann"})) for image in range(20)]
    ceiling = retrieval_ceiling(images, captions)
    expected = {"R@1": pytest.approx(0.05), "R@5": pytest.approx(0.25), "R@10": pytest.approx(0.5)}
    assert ceiling == {"image_to_text": expected, "text_to_image": expected}


def test_against_an_oracle_that_ranks() -> None:
    rng = random.Random(3)
    images = [frozenset(rng.sample("abcdefg", 4)) for _ in range(12)]
    captions = [
        Told(image, frozenset(rng.sample(sorted(images[image]), rng.choice((1, 2, 4)))))
        for image in range(12)
        for _ in range(2)
    ]
    true_of = [sum(told.names <= shown for shown in images) for told in captions]
    rounds, hits = 3000, {"image_to_text": 0, "text_to_image": 0}
    for _ in range(rounds):
        image = rng.randrange(12)
        # untrue captions never come before true ones; ties are broken at random
        order = sorted(
            (not told.names <= images[image], n, rng.random(), told.image == image)
            for told, n in zip(captions, true_of, strict=True)
        )
        hits["image_to_text"] += any(own for *_, own in order[:3])
        told = rng.choice(captions)
        ranked = sorted(
            (not told.names <= shown, rng.random(), i == told.image) for i, shown in enumerate(images)
        )
        hits["text_to_image"] += any(own for *_, own in ranked[:3])
    ceiling = retrieval_ceiling(images, captions, ks=(3,))
    for direction, count in hits.items():
        assert 0.2 < ceiling[direction]["R@3"] < 1
        assert ceiling[direction]["R@3"] == pytest.approx(count / rounds, abs=0.035)
