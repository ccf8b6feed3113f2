"""Recall against a slow reference, with ties, several captions a photo, and a collapsed model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup.training.retrieval import chance, match_ranks, recalls


def slow_recall(scores: np.ndarray, query_ids: list[int], target_ids: list[int], k: int) -> float:
    hits = []
    for row, own in zip(scores, query_ids, strict=True):
        if own not in target_ids:
            continue
        # worst case for ties: every non-match with the same score comes first
        order = sorted(range(len(row)), key=lambda j: (-row[j], target_ids[j] == own))
        hits.append(any(target_ids[j] == own for j in order[:k]))
    return float(np.mean(hits)) if hits else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_equals_slow_reference(num_images: int, num_captions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # small integers make ties common
    image, text = rng.integers(-1, 2, (num_images, 3)), rng.integers(-1, 2, (num_captions, 3))
    image_ids = rng.permutation(num_images)
    caption_ids = rng.integers(0, num_images + 2, num_captions)
    ranks = match_ranks(
        torch.tensor(image),
        torch.tensor(text),
        image_ids_N=torch.tensor(image_ids),
        caption_ids_M=torch.tensor(caption_ids),
        chunk=5,
    )
    found = recalls(ranks)
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(
            slow_recall(image @ text.T, image_ids.tolist(), caption_ids.tolist(), k)
        )
        assert found[f"text_to_image_r{k}"] == pytest.approx(
            slow_recall(text @ image.T, caption_ids.tolist(), image_ids.tolist(), k)
        )


def test_perfect_and_collapsed() -> None:
    eye = torch.eye(20)
    ids = torch.arange(20)
    assert recalls(match_ranks(eye, eye, image_ids_N=ids, caption_ids_M=ids))["mean_recall"] == 1
    constant = torch.ones(20, 4)
    assert recalls(match_ranks(constant, constant, image_ids_N=ids, caption_ids_M=ids))["mean_recall"] == 0


def test_no_number_is_no_hit() -> None:
    ids = torch.arange(4)
    nothing = torch.full((4, 3), torch.nan)
    found = recalls(match_ranks(nothing, nothing, image_ids_N=ids, caption_ids_M=ids))
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 0


def test_chance_matches_simulation() -> None:
    ids, captions = torch.arange(40), torch.arange(40).repeat_interleave(5)
    generator = torch.Generator().manual_seed(0)
    found = [
        recalls(
            match_ranks(
                torch.randn(40, 16, generator=generator),
                torch.randn(200, 16, generator=generator),
                image_ids_N=ids,
                caption_ids_M=captions,
            )
        )
        for _ in range(60)
    ]
    expected = chance(40, 200)
    for direction, value in expected.items():
        assert np.mean([f[f"{direction}_r10"] for f in found]) == pytest.approx(value, abs=0.02)
