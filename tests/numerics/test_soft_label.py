"""Soft-label contrast against the slow reference; labels; rows that do not count."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptmeup.losses.soft_label import dense, harden, soft_label_contrast
from promptmeup.records import SoftLabels
from tests.numerics import reference

KEEP = {
    "all": [True] * 6,
    "some": [True, False, True, True, False, False],
    "one": [False, False, False, False, True, False],
    "none": [False] * 6,
}


def _rows(seed: int, rows: int, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def _alone(x: Tensor, *, bank: Tensor, q: Tensor, keep: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    row, column = soft_label_contrast(
        x,
        bank_KD=bank,
        q_NK=q,
        keep_N=keep,
        all_student_GD=x,
        all_keep_G=keep,
        temperature=temperature,
    )
    assert row.count == column.count == keep.sum()
    return row.sum / row.count.clamp(min=1), column.sum / column.count.clamp(min=1)


def _labels(rows: int, prompts: int) -> Tensor:
    return (3 * _rows(9, rows, prompts)).softmax(-1)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kept", list(KEEP))
def test_equals_reference_in_value_and_gradient(kept: str, hard: bool) -> None:
    x, bank, q = _rows(1, 6).requires_grad_(), _rows(2, 5), _labels(6, 5)
    q = harden(q) if hard else q
    temperature = torch.tensor([0.3]).double().requires_grad_()
    row, column = _alone(x, bank=bank, q=q, keep=torch.tensor(KEEP[kept]), temperature=temperature)
    loss = (row + column) / 2
    loss.backward()

    def slow(x: reference.Array, temperature: reference.Array) -> float:
        return reference.soft_label_contrast(x, bank.numpy(), q.numpy(), KEEP[kept], float(temperature[0]))

    at = x.detach().numpy(), temperature.detach().numpy()
    assert loss.item() == pytest.approx(slow(*at), rel=1e-12, abs=0)
    assert x.grad is not None
    assert temperature.grad is not None
    expected = reference.gradient(lambda a: slow(a, at[1]), at[0])
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=0, atol=2e-8)
    expected = reference.gradient(lambda a: slow(at[0], a), at[1])
    np.testing.assert_allclose(temperature.grad.numpy(), expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize("kept", list(KEEP))
def test_rows_that_do_not_count_may_hold_anything(kept: str) -> None:
    keep = torch.tensor(KEEP[kept])
    bank, q, temperature = _rows(2, 5), _labels(6, 5), torch.tensor([0.3]).double()
    results = []
    for garbage in (0.0, torch.nan, torch.inf):
        x = _rows(1, 6).where(keep[:, None], garbage).requires_grad_()
        labels = q.where(keep[:, None], garbage)
        tau = temperature.clone().requires_grad_()
        row, column = _alone(x, bank=bank, q=labels, keep=keep, temperature=tau)
        gradients = torch.autograd.grad(row + column, (x, tau))
        assert gradients[0][~keep].count_nonzero() == 0
        results.append(torch.cat([torch.stack([row, column]), *(g.flatten() for g in gradients)]).detach())
    assert results[0].isfinite().all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    if kept == "none":
        assert results[0].count_nonzero() == 0


def test_best_student_is_the_teacher() -> None:
    """Where the student's row softmax is the label, the row term is the label's entropy and has no gradient."""
    bank = torch.eye(5).double()
    q = _labels(6, 5)
    x = q.log().requires_grad_()
    row, _ = _alone(
        x, bank=bank, q=q, keep=torch.ones(6, dtype=torch.bool), temperature=torch.ones(1).double()
    )
    (gradient,) = torch.autograd.grad(row, x)
    assert row.item() == pytest.approx(-(q * q.log()).sum(1).mean().item(), rel=1e-12)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("alpha", [14.3, 100.0, 1000.0])
def test_float32_near_the_label_keeps_its_gradient(alpha: float) -> None:
    """A student near its teacher has a gradient that is a small difference; bf16 softmaxes lose 3-14 % of it."""
    bank = _rows(2, 50, 16)
    x = _rows(1, 24, 16)
    q = (F.normalize(x + 0.01 * _rows(3, 24, 16), dim=-1) @ bank.T * alpha).softmax(-1)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = x.float().to(dtype).requires_grad_()
        keep = torch.ones(24, dtype=torch.bool)
        temperature = torch.tensor([1 / alpha], dtype=torch.float32).to(dtype)
        row, column = _alone(leaf, bank=bank.float(), q=q.float(), keep=keep, temperature=temperature)
        gradients.append(torch.autograd.grad(row + column, leaf)[0].double())
    assert gradients[1].isfinite().all()
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 3e-4


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_dense_label_is_the_stored_distribution(num_prompts: int, num_kept: int, seed: int) -> None:
    num_kept = min(num_kept, num_prompts)
    generator = torch.Generator().manual_seed(seed)
    probs, ids = torch.randn(4, num_prompts, generator=generator).mul(2).softmax(-1).topk(num_kept)
    stored = probs.half().float()
    q = dense(SoftLabels(ids, stored, torch.ones(4, dtype=torch.bool)), num_prompts=num_prompts)
    assert q.shape == (4, num_prompts)
    torch.testing.assert_close(q.sum(-1), torch.ones(4))
    for row in range(4):
        expected = reference.whole_label(ids[row].tolist(), stored[row].double().tolist(), num_prompts)
        # rounding to half may leave a little more than 1; the rest is then 0, not negative
        np.testing.assert_allclose(q[row].double().numpy(), expected, atol=6e-4)
        assert (q[row] >= 0).all()


def test_dense_label_in_figures() -> None:
    labels = SoftLabels(torch.tensor([[[3, 1]]]), torch.tensor([[[0.5, 0.2]]]), torch.tensor([[True]]))
    q = dense(labels, num_prompts=5)
    torch.testing.assert_close(q, torch.tensor([[[0.1, 0.2, 0.1, 0.5, 0.1]]]))
    assert harden(q).tolist() == [[[0, 0, 0, 1, 0]]]
