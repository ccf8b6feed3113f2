"""Matching against the slow reference."""

import numpy as np
import pytest
import torch

from promptmeup.losses.matching import matching
from tests.numerics import reference

LOGITS = torch.tensor([[0.5, -1.0], [2.0, 2.5], [-0.3, 0.1], [0.0, 0.0]], dtype=torch.float64)
MATCHED = [True, True, False, False]


def test_equals_reference_in_value_and_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    term, accuracy = matching(logits, matched_B=torch.tensor(MATCHED))
    loss = term.sum / term.count
    loss.backward()
    assert loss.item() == pytest.approx(reference.matching(LOGITS.numpy(), MATCHED), rel=1e-12)
    expected = reference.gradient(lambda at: reference.matching(at, MATCHED), LOGITS.numpy())
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-8)
    assert (accuracy.sum.item(), accuracy.count.item()) == (2, 4)
    assert not accuracy.sum.requires_grad
    assert not term.count.requires_grad


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = LOGITS.bfloat16().repeat(300, 1)
    term, _ = matching(logits, matched_B=torch.tensor(MATCHED * 300))
    assert term.sum.dtype is torch.float32
    expected = 1200 * reference.matching(LOGITS.bfloat16().double().numpy(), MATCHED)
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
