"""Alignment and uniformity against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from promptmeup.training.geometry import alignment, uniformity


def _rows(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_uniformity_is_the_mean_over_pairs(chunk: int) -> None:
    rows = _rows(20, 0)
    distances = torch.cdist(rows, rows)[~torch.eye(20, dtype=torch.bool)]
    expected = math.log((-2 * distances**2).exp().mean())
    assert uniformity(rows, chunk=chunk) == pytest.approx(expected, rel=1e-5)


def test_uniformity_of_a_collapse_and_of_nothing() -> None:
    assert uniformity(_rows(1, 0).expand(30, 6)) == pytest.approx(0.0, abs=1e-5)
    assert uniformity(_rows(1, 0)) == 0
    assert uniformity(torch.eye(6)) == pytest.approx(-4.0, rel=1e-5)


def test_alignment_finds_each_captions_own_photo() -> None:
    images, captions = _rows(4, 1), _rows(6, 2)
    image_ids, caption_ids = torch.tensor([7, -3, 9, 2]), torch.tensor([2, 2, 7, 9, 100, -3])
    own = [3, 3, 0, 2, None, 1]
    expected = [
        ((captions[i] - images[place]) ** 2).sum().item() for i, place in enumerate(own) if place is not None
    ]
    found = alignment(images, captions, image_ids_N=image_ids, caption_ids_M=caption_ids)
    assert found == pytest.approx(sum(expected) / 5, rel=1e-5)
    nothing = torch.tensor([50] * 6)
    assert alignment(images, captions, image_ids_N=image_ids, caption_ids_M=nothing) == 0
