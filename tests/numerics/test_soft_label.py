"""Soft-label contrast against the slow reference; labels; rows that do not count."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.contrast import contrast
from promptmeup.losses.soft_label import LabelPair, hardest, spread
from promptmeup.records import SoftLabels
from tests.numerics import paper, plain, reference

ALONE = WorldExchange(World(rank=0, size=1, local_rank=0, device=torch.device("cpu")))

KEEP = {
    "all": [True] * 6,
    "some": [True, False, True, True, False, False],
    "one": [False, False, False, False, True, False],
    "none": [False] * 6,
}


def _rows(seed: int, rows: int, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def _alone(x: Tensor, *, bank: Tensor, labels: SoftLabels, temperature: Tensor) -> Tensor:
    """The mean of both directions."""
    pair = LabelPair(x, bank_KD=bank, labels=labels, keep_N=labels.keep, temperature=temperature)
    (loss,), _ = contrast([pair], exchange=ALONE, riders=torch.zeros(0))
    return loss


def _all_stored(q_NK: Tensor, keep_N: Tensor | None = None) -> SoftLabels:
    """Labels of which every entry is stored, the most probable first."""
    probs, ids = q_NK.sort(-1, descending=True)
    return SoftLabels(ids, probs, torch.ones(len(q_NK), dtype=torch.bool) if keep_N is None else keep_N)


def _dense(labels: SoftLabels, *, num_prompts: int) -> Tensor:
    """The distributions that `spread` describes."""
    probs, others = spread(labels, num_prompts=num_prompts)
    return others[..., None].expand(*others.shape, num_prompts).scatter(-1, labels.ids, probs)


def _labels(rows: int, prompts: int) -> Tensor:
    return (3 * _rows(9, rows, prompts)).softmax(-1)


@pytest.mark.parametrize("stored", ["all", "three", "hard"])
@pytest.mark.parametrize("kept", list(KEEP))
def test_equals_reference_in_value_and_gradient(kept: str, stored: str) -> None:
    x, bank = _rows(1, 6).requires_grad_(), _rows(2, 5)
    labels = _all_stored(_labels(6, 5), torch.tensor(KEEP[kept]))
    if stored == "three":
        labels = SoftLabels(labels.ids[:, :3], labels.probs[:, :3], labels.keep)
    if stored == "hard":
        labels = hardest(labels)
    q = _dense(labels, num_prompts=5)
    temperature = torch.tensor([0.3]).double().requires_grad_()
    loss = _alone(x, bank=bank, labels=labels, temperature=temperature)
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


def test_equals_whole_matrices() -> None:
    """More rows and prompts than a tile has."""
    generator = torch.Generator().manual_seed(0)
    probs, ids = torch.randn(1500, 700, generator=generator).double().mul(3).softmax(-1).topk(8)
    keep = torch.rand(1500, generator=generator) < 0.7
    labels, bank = SoftLabels(ids, probs, keep), _rows(2, 700, 12)
    results = []
    for tiled in (True, False):
        leaves = [_rows(1, 1500, 12).requires_grad_(), torch.tensor([0.05]).double().requires_grad_()]
        if tiled:
            loss = _alone(leaves[0], bank=bank, labels=labels, temperature=leaves[1])
        else:
            q = plain.dense(labels, num_prompts=700)
            row, column = plain.soft_label(
                leaves[0], bank_KD=bank, q_NK=q, keep_N=keep, temperature=leaves[1]
            )
            loss = (row + column) / 2
        results.append((loss.item(), torch.autograd.grad(loss, leaves)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_row_direction_is_the_papers_classifier() -> None:
    """Twice our mean less the column direction is the paper's loss, whose classifier is the bank."""
    x, bank, q = _rows(1, 6), _rows(2, 5), _labels(6, 5)
    keep, temperature = torch.ones(6, dtype=torch.bool), torch.tensor([0.3]).double()
    ours = _alone(x, bank=bank, labels=_all_stored(q), temperature=temperature)
    _, column = plain.soft_label(x, bank_KD=bank, q_NK=q, keep_N=keep, temperature=temperature)
    expected = paper.soft_label(x @ bank.T / temperature, q_NK=q)
    assert (2 * ours - column).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("kept", list(KEEP))
def test_rows_that_do_not_count_may_hold_anything(kept: str) -> None:
    keep = torch.tensor(KEEP[kept])
    bank, q, temperature = _rows(2, 5), _labels(6, 5), torch.tensor([0.3]).double()
    results = []
    for garbage in (0.0, torch.nan, torch.inf):
        x = _rows(1, 6).where(keep[:, None], garbage).requires_grad_()
        stored = _all_stored(q, keep)
        labels = SoftLabels(stored.ids, stored.probs.where(keep[:, None], garbage), keep)
        tau = temperature.clone().requires_grad_()
        loss = _alone(x, bank=bank, labels=labels, temperature=tau)
        gradients = torch.autograd.grad(loss, (x, tau))
        assert gradients[0][~keep].count_nonzero() == 0
        results.append(torch.cat([loss.reshape(1), *(g.flatten() for g in gradients)]).detach())
    assert results[0].isfinite().all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    if kept == "none":
        assert results[0].count_nonzero() == 0


def test_best_student_is_the_teacher() -> None:
    """Where the student's softmaxes are the labels in both directions, there is no gradient."""
    x, bank, temperature = _rows(1, 1), torch.eye(4).double(), torch.tensor([0.3]).double()
    q = (x @ bank.T / temperature).softmax(-1)
    leaf = x.clone().requires_grad_()
    loss = _alone(leaf, bank=bank, labels=_all_stored(q), temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, leaf)
    # one row: its column softmaxes are all 1, and so are the column targets
    assert loss.item() == pytest.approx(-(q * q.log()).sum().item() / 2, rel=1e-12)
    assert gradient.abs().max() < 1e-13


@pytest.mark.parametrize("alpha", [14.3, 100.0, 1000.0])
def test_float32_near_the_label_keeps_its_gradient(alpha: float) -> None:
    """A student near its teacher has a gradient that is a small difference; bf16 softmaxes lose 3-14 % of it."""
    bank = _rows(2, 50, 16).float()
    x = _rows(1, 24, 16)
    q = (F.normalize(x + 0.01 * _rows(3, 24, 16), dim=-1).float() @ bank.T * alpha).softmax(-1)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        leaf = x.float().to(dtype).requires_grad_()
        temperature = torch.tensor([1 / alpha], dtype=torch.float32).to(dtype)
        loss = _alone(leaf, bank=bank, labels=_all_stored(q), temperature=temperature)
        gradients.append(torch.autograd.grad(loss, leaf)[0].double())
    assert gradients[1].isfinite().all()
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 3e-4


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_dense_label_is_the_stored_distribution(num_prompts: int, num_kept: int, seed: int) -> None:
    num_kept = min(num_kept, num_prompts)
    generator = torch.Generator().manual_seed(seed)
    probs, ids = torch.randn(4, num_prompts, generator=generator).mul(2).softmax(-1).topk(num_kept)
    stored = probs.half().float()
    q = _dense(SoftLabels(ids, stored, torch.ones(4, dtype=torch.bool)), num_prompts=num_prompts)
    assert q.shape == (4, num_prompts)
    torch.testing.assert_close(q.sum(-1), torch.ones(4))
    for row in range(4):
        expected = reference.whole_label(ids[row].tolist(), stored[row].double().tolist(), num_prompts)
        # rounding to half may leave a little more than 1; the rest is then 0, not negative
        np.testing.assert_allclose(q[row].double().numpy(), expected, atol=6e-4)
        assert (q[row] >= 0).all()


def test_dense_label_in_figures() -> None:
    labels = SoftLabels(torch.tensor([[[3, 1]]]), torch.tensor([[[0.5, 0.2]]]), torch.tensor([[True]]))
    q = _dense(labels, num_prompts=5)
    torch.testing.assert_close(q, torch.tensor([[[0.1, 0.2, 0.1, 0.5, 0.1]]]))
    assert _dense(hardest(labels), num_prompts=5).tolist() == [[[0, 0, 0, 1, 0]]]
