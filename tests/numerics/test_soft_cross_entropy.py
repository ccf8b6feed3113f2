"""The classifier's loss against the slow reference and the paper's; rows that do not count; precision."""

import numpy as np
import pytest
import torch
from torch import Tensor

from promptmeup.losses.soft_cross_entropy import soft_cross_entropy
from promptmeup.losses.soft_label import hardest
from promptmeup.records import SoftLabels
from tests.numerics import paper, plain, reference

ROWS, PROMPTS = 6, 9
KEEP = {
    "all": [True] * ROWS,
    "some": [True, False, True, True, False, False],
    "none": [False] * ROWS,
}


def _logits(seed: int = 1, *, rows: int = ROWS, prompts: int = PROMPTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, prompts, generator=generator, dtype=torch.float64)


def _labels(
    kept: str = "all", *, num_stored: int = PROMPTS, rows: int = ROWS, prompts: int = PROMPTS
) -> SoftLabels:
    probs, ids = _logits(2, rows=rows, prompts=prompts).softmax(1).topk(num_stored)
    keep = torch.tensor(KEEP[kept]) if rows == ROWS else torch.ones(rows, dtype=torch.bool)
    return SoftLabels(ids, probs, keep)


@pytest.mark.parametrize("stored", ["all", "three", "hard"])
@pytest.mark.parametrize("kept", list(KEEP))
def test_equals_reference_in_value_and_gradient(kept: str, stored: str) -> None:
    labels = _labels(kept, num_stored=PROMPTS if stored == "all" else 3)
    if stored == "hard":
        labels = hardest(labels)
    q = np.stack(
        [
            reference.whole_label(ids, probs, PROMPTS)
            for ids, probs in zip(labels.ids.tolist(), labels.probs.tolist(), strict=True)
        ]
    )
    logits = _logits().requires_grad_()
    term = soft_cross_entropy(logits, labels, labels.keep)
    term.sum.backward()
    at = logits.detach().numpy()
    assert term.sum.item() == pytest.approx(reference.soft_cross_entropy(at, q, KEEP[kept]), rel=1e-12, abs=0)
    assert term.count.item() == sum(KEEP[kept])
    expected = reference.gradient(lambda at: reference.soft_cross_entropy(at, q, KEEP[kept]), at)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize("num_stored", [1, 8, 1000])
def test_equals_the_paper_with_whole_labels(num_stored: int) -> None:
    labels = _labels(num_stored=num_stored, rows=50, prompts=1000)
    results = []
    for ours in (True, False):
        logits = _logits(rows=50, prompts=1000).requires_grad_()
        if ours:
            term = soft_cross_entropy(logits, labels, labels.keep)
            loss = term.sum / term.count
        else:
            loss = paper.soft_label(logits, q_NK=plain.dense(labels, num_prompts=1000))
        results.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("kept", list(KEEP))
def test_rows_that_do_not_count_may_hold_anything(kept: str) -> None:
    labels = _labels(kept, num_stored=3)
    results = []
    for garbage in (0.0, torch.nan, torch.inf):
        logits = _logits().where(labels.keep[:, None], garbage).requires_grad_()
        probs = labels.probs.where(labels.keep[:, None], garbage)
        term = soft_cross_entropy(logits, SoftLabels(labels.ids, probs, labels.keep), labels.keep)
        (gradient,) = torch.autograd.grad(term.sum, logits)
        assert gradient[~labels.keep].count_nonzero() == 0
        results.append(torch.cat([term.sum.detach().reshape(1), gradient.flatten()]))
    assert results[0].isfinite().all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    if kept == "none":
        assert results[0].count_nonzero() == 0


def test_best_student_is_the_teacher() -> None:
    labels = _labels()
    logits = _logits(2).requires_grad_()
    term = soft_cross_entropy(logits, labels, labels.keep)
    (gradient,) = torch.autograd.grad(term.sum, logits)
    q = _logits(2).softmax(1)
    assert term.sum.item() == pytest.approx(-(q * q.log()).sum().item(), rel=1e-12)
    assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_near_the_label_keeps_its_gradient(scale: float) -> None:
    """Near its teacher the gradient is a small difference, a thousandth of the label here."""
    logits = (scale * _logits(2, rows=24, prompts=200) / 3).float()
    probs, ids = (logits.double() + 1e-3 * _logits(3, rows=24, prompts=200)).softmax(1).topk(32)
    labels = SoftLabels(ids, probs.float(), torch.ones(24, dtype=torch.bool))
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = logits.to(dtype).requires_grad_()
        term = soft_cross_entropy(leaf, labels, labels.keep)
        gradients.append(torch.autograd.grad(term.sum, leaf)[0].double())
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    labels = _labels(rows=600, num_stored=3)
    logits = _logits(rows=600).bfloat16()
    term = soft_cross_entropy(logits, labels, labels.keep)
    exact = soft_cross_entropy(logits.double(), labels, labels.keep)
    assert term.sum.dtype is torch.float32
    assert term.sum.item() == pytest.approx(exact.sum.item(), rel=1e-5)
