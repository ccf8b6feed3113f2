"""Image-text contrast against the slow reference, and at the edges of its precision."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptmeup.losses.contrastive import ImageText, contrast, image_text
from promptmeup.records import Gathered, Term
from tests.numerics import reference

IMAGE_IDS = {
    "plain": [0, 1, 2, 3, 4, 5],
    "falsified": [0, 1, 2, 3, 4, 5],
    "captions_of_one_photo": [0, 0, 0, 1, 1, 2],
    "found_elsewhere": [0, 1, 2, 0, 4, 5],
}
CAPTION_IDS = {
    "plain": [0, 1, 2, 3, 4, 5],
    "falsified": [0, 9, 2, 8, 4, 7],
    "captions_of_one_photo": [0, 0, 0, 1, 1, 2],
    "found_elsewhere": [1, 0, 2, 0, 9, 2],
}


def _rows(seed: int, *, rows: int = 6, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def _alone(
    image: Tensor,
    text: Tensor,
    *,
    image_ids: list[int],
    caption_ids: list[int],
    temperature: Tensor,
    same_image: Literal["positive", "mask"] = "positive",
) -> ImageText:
    gathered = Gathered(0, image, text, torch.tensor(image_ids), torch.tensor(caption_ids))
    return image_text(image, text_BD=text, gathered=gathered, temperature=temperature, same_image=same_image)


def _mean(loss: ImageText) -> Tensor:
    forth, back, _ = loss
    return (forth.sum / forth.count.clamp(min=1) + back.sum / back.count.clamp(min=1)) / 2


@pytest.mark.parametrize("same_image", ["positive", "mask"])
@pytest.mark.parametrize("layout", list(IMAGE_IDS))
def test_equals_reference_in_value_and_gradient(layout: str, same_image: Literal["positive", "mask"]) -> None:
    leaves = [
        _rows(1).requires_grad_(),
        _rows(2).requires_grad_(),
        torch.tensor([0.3]).double().requires_grad_(),
    ]
    ids = {"image_ids": IMAGE_IDS[layout], "caption_ids": CAPTION_IDS[layout]}
    loss = _mean(_alone(leaves[0], leaves[1], **ids, temperature=leaves[2], same_image=same_image))
    loss.backward()

    arrays = [leaf.detach().numpy() for leaf in leaves]

    def slow(image: reference.Array, text: reference.Array, temperature: reference.Array) -> float:
        return reference.image_text(image, text, *ids.values(), float(temperature[0]), same_image)

    assert loss.item() == pytest.approx(slow(*arrays), rel=1e-12)
    for position, leaf in enumerate(leaves):
        expected = reference.gradient(
            lambda at, p=position: slow(*(at if i == p else a for i, a in enumerate(arrays))),
            arrays[position],
        )
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=0, atol=2e-8)


def test_counts_are_rows_with_a_true_match_in_each_direction() -> None:
    ids = {"image_ids": [0, 1, 2, 3], "caption_ids": [3, 0, 0, 9]}
    one = torch.ones(1).double()
    both = _alone(_rows(1, rows=4), _rows(2, rows=4), **ids, temperature=one)
    assert (both.image_to_text.count, both.text_to_image.count) == (2, 3)
    own = _alone(_rows(1, rows=4), _rows(2, rows=4), **ids, temperature=one, same_image="mask")
    assert (own.image_to_text.count, own.text_to_image.count) == (0, 0)


def test_row_without_match_stays_a_negative_of_the_others() -> None:
    image, text = _rows(1, rows=2), _rows(2, rows=2).requires_grad_()
    loss = _alone(
        image, text, image_ids=[0, 1], caption_ids=[0, 9], temperature=torch.ones(1).double()
    ).image_to_text.sum
    (gradient,) = torch.autograd.grad(loss, text)
    share = (image[0] @ text.T).softmax(0)[1]
    torch.testing.assert_close(gradient[1], share.detach() * image[0])


def test_partner_is_found_by_offset() -> None:
    x, y = _rows(1), _rows(2)
    ids = torch.tensor([0, 0, 1, 0, 1, 2])
    whole, _ = contrast(
        x, y_GD=y, x_ids_B=ids, y_ids_G=ids, offset=0, temperature=torch.ones(1).double(), same_image="mask"
    )
    parts: list[Term] = []
    for offset in (0, 2, 4):
        own = slice(offset, offset + 2)
        part, _ = contrast(
            x[own],
            y_GD=y,
            x_ids_B=ids[own],
            y_ids_G=ids,
            offset=offset,
            temperature=torch.ones(1).double(),
            same_image="mask",
        )
        parts.append(part)
    torch.testing.assert_close(torch.stack([part.sum for part in parts]).sum(), whole.sum)
    assert sum(part.count for part in parts) == whole.count == 6


@pytest.mark.parametrize("same_image", ["positive", "mask"])
def test_no_true_match_gives_exactly_zero(same_image: Literal["positive", "mask"]) -> None:
    leaves = [
        _rows(1).requires_grad_(),
        _rows(2).requires_grad_(),
        torch.tensor([1e-3]).double().requires_grad_(),
    ]
    result = _alone(
        leaves[0],
        leaves[1],
        image_ids=[0, 1, 2, 3, 4, 5],
        caption_ids=[6, 7, 8, 9, 10, 11],
        temperature=leaves[2],
        same_image=same_image,
    )
    (result.image_to_text.sum + result.text_to_image.sum).backward()
    for term in result:
        assert (term.sum.item(), term.count.item()) == (0, 0)
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.count_nonzero() == 0


@pytest.mark.parametrize(("alpha", "tolerance"), [(14.3, 4e-6), (100.0, 1e-5), (1000.0, 1e-4)])
def test_float32_at_every_temperature_of_the_clamp(alpha: float, tolerance: float) -> None:
    """1000 is the clamp's end: exp overflows there without a running maximum."""
    image, text = _rows(1, rows=32, width=16), _rows(2, rows=32, width=16)
    losses, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        # the same numbers in both, so that only the arithmetic differs
        x, y = (t.float().to(dtype).requires_grad_() for t in (image, text))
        temperature = torch.tensor([1 / alpha], dtype=torch.float32).to(dtype)
        ids = list(range(32))
        loss = _mean(_alone(x, y, image_ids=ids, caption_ids=ids, temperature=temperature))
        losses.append(loss.item())
        gradients.append(torch.cat(torch.autograd.grad(loss, (x, y))).double())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < tolerance


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_features_get_float32_logits(autocast: bool) -> None:
    """bf16 logits are off by 6e-2 at this temperature; what remains is the rounding of the gradient itself."""
    image, text = (_rows(seed, rows=32, width=16).bfloat16() for seed in (1, 2))
    ids = list(range(32))
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        x, y = (t.to(dtype).requires_grad_() for t in (image, text))
        temperature = torch.tensor([0.01], dtype=torch.bfloat16).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype is torch.bfloat16):
            loss = _mean(_alone(x, y, image_ids=ids, caption_ids=ids, temperature=temperature))
        results.append((loss, torch.cat(torch.autograd.grad(loss, (x, y))).double()))
    (exact, exact_gradient), (ours, gradient) = results
    assert ours.dtype is torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - exact_gradient).norm() / exact_gradient.norm() < 4e-3


def test_accuracy_counts_any_true_match() -> None:
    image = torch.eye(4).double()
    text = image[[0, 0, 3, 2]]
    result = _alone(
        image, text, image_ids=[5, 6, 7, 7], caption_ids=[9, 5, 7, 7], temperature=torch.ones(1).double()
    )
    # image 0: captions 0 (false) and 1 (true) tie, the first wins; 1: no match; 2 and 3: each other's caption
    assert (result.accuracy.sum.item(), result.accuracy.count.item()) == (2, 3)
    assert not result.accuracy.sum.requires_grad
