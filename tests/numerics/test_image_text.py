"""Image-text contrast against the slow reference, and at the edges of its precision."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from promptmeup.distributed.collectives import WorldExchange
from promptmeup.distributed.world import World
from promptmeup.losses.contrast import contrast, from_sums, to_sums
from promptmeup.losses.exchange import Columns
from promptmeup.losses.image_text import IdPair, MeanOver, SameImage, Teacher, find_matches
from tests.numerics import paper, plain, reference

ALONE = WorldExchange(World(rank=0, size=1, local_rank=0, device=torch.device("cpu")))
SAME_IMAGE: tuple[SameImage, ...] = ("positive", "mask", "negative")
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


@dataclass(frozen=True)
class Found:
    loss: Tensor
    pair: IdPair

    @property
    def accuracy(self) -> tuple[float, float]:
        assert self.pair.accuracy is not None
        return self.pair.accuracy.sum.item(), self.pair.accuracy.count.item()


def alone(
    image: Tensor,
    text: Tensor,
    *,
    image_ids: list[int],
    caption_ids: list[int],
    temperature: Tensor,
    same_image: SameImage = "positive",
    mean_over: MeanOver = "matched",
    teacher: plain.SoftTargets | None = None,
) -> Found:
    columns = Columns(ALONE, torch.tensor([image_ids, caption_ids]).T)
    (text,) = columns.send(text, constant=[] if teacher is None else [teacher.y_GU])
    soft = teacher and Teacher(teacher.x_GU, position=1, temperature=teacher.temperature, share=teacher.share)
    pair = IdPair(
        image,
        columns=columns,
        temperature=temperature,
        same_image=same_image,
        mean_over=mean_over,
        teacher=soft or None,
    )
    (loss,), _ = contrast([pair], exchange=ALONE, riders=torch.zeros(0))
    return Found(loss, pair)


def _leaves(*, rows: int = 6, width: int = 4, temperature: float = 0.3) -> list[Tensor]:
    return [
        _rows(1, rows=rows, width=width).requires_grad_(),
        _rows(2, rows=rows, width=width).requires_grad_(),
        torch.tensor([temperature]).double().requires_grad_(),
    ]


@pytest.mark.parametrize("same_image", SAME_IMAGE)
@pytest.mark.parametrize("layout", list(IMAGE_IDS))
def test_equals_reference_in_value_and_gradient(layout: str, same_image: SameImage) -> None:
    leaves = _leaves()
    ids = {"image_ids": IMAGE_IDS[layout], "caption_ids": CAPTION_IDS[layout]}
    loss = alone(leaves[0], leaves[1], **ids, temperature=leaves[2], same_image=same_image).loss
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


def _random_ids(rows: int, seed: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    image_ids = torch.randint(0, rows, (rows,), generator=generator)
    falsified = torch.rand(rows, generator=generator) < 0.4
    other = torch.randint(0, 2 * rows, (rows,), generator=generator)
    return {"image_ids": image_ids.tolist(), "caption_ids": other.where(falsified, image_ids).tolist()}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("same_image", SAME_IMAGE)
def test_soft_targets_equal_whole_matrices(same_image: SameImage, share: float) -> None:
    """More rows than a tile has columns, falsified and repeated ones, with and without a teacher."""
    rows = 700
    ids = _random_ids(rows, seed=5)
    teacher = None
    if share:
        teacher = plain.SoftTargets(_rows(3, rows=rows, width=6), _rows(4, rows=rows, width=6), 0.05, share)
    results = []
    for tiled in (True, False):
        leaves = _leaves(rows=rows, width=16, temperature=0.05)
        if tiled:
            loss = alone(
                leaves[0], leaves[1], **ids, temperature=leaves[2], same_image=same_image, teacher=teacher
            ).loss
        else:
            loss = plain.image_text(
                leaves[0],
                leaves[1],
                x_ids_G=torch.tensor(ids["image_ids"]),
                y_ids_G=torch.tensor(ids["caption_ids"]),
                temperature=leaves[2],
                same_image=same_image,
                teacher=teacher,
            )
        results.append((loss.item(), torch.autograd.grad(loss, leaves)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("alpha", [14.3, 100.0, 1000.0])
def test_student_that_is_its_teacher_has_no_gradient(alpha: float) -> None:
    """p - q of equal softmaxes: float32 leaves rounding only, and bfloat16 features must not leave more."""
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (_rows(seed, rows=40, width=16).to(dtype).requires_grad_() for seed in (1, 2))
        teacher = plain.SoftTargets(x.detach(), y.detach(), 1 / alpha, 1.0)
        ids = list(range(40))
        temperature = torch.tensor([1 / alpha])
        loss = alone(x, y, image_ids=ids, caption_ids=ids, temperature=temperature, teacher=teacher).loss
        gradients = torch.autograd.grad(loss, (x, y))
        # against a gradient of about alpha / rows for a student that knows nothing
        assert max(g.abs().max().item() for g in gradients) < 2e-5 * alpha / 40


@pytest.mark.parametrize("matched", ["all", "some"])
def test_equals_the_paper_where_both_mean_the_same(matched: str) -> None:
    """The paper divides by all rows, ours by those that have a true match."""
    rows = 12
    keep = torch.ones(rows, dtype=torch.bool) if matched == "all" else torch.arange(rows) % 3 > 0
    image_ids = torch.arange(rows)
    caption_ids = image_ids.where(keep, image_ids + 100)
    gradients = []
    for ours in (True, False):
        leaves = _leaves(rows=rows)
        if ours:
            loss = alone(
                leaves[0],
                leaves[1],
                image_ids=image_ids.tolist(),
                caption_ids=caption_ids.tolist(),
                temperature=leaves[2],
            ).loss
            loss = loss * keep.sum() / rows
        else:
            loss = paper.image_text(leaves[0], leaves[1], matched_B=keep, temperature=leaves[2])
        gradients.append(
            torch.cat([loss.reshape(1), *(g.flatten() for g in torch.autograd.grad(loss, leaves))])
        )
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-14)


def _value_and_gradients(loss: Tensor, leaves: list[Tensor]) -> Tensor:
    return torch.cat([loss.reshape(1), *(g.flatten() for g in torch.autograd.grad(loss, leaves))])


@pytest.mark.parametrize("layout", [*IMAGE_IDS, "random"])
def test_the_papers_switches_are_the_paper(layout: str) -> None:
    """Falsified pairs and repeated images, which the paper takes for negatives; 700 rows are more than a tile."""
    rows = 700 if layout == "random" else 6
    ids = {"image_ids": IMAGE_IDS.get(layout, []), "caption_ids": CAPTION_IDS.get(layout, [])}
    if layout == "random":
        ids = _random_ids(rows, seed=5)
    matched = torch.tensor(ids["image_ids"]) == torch.tensor(ids["caption_ids"])
    leaves = _leaves(rows=rows, width=16)
    expected = paper.image_text(leaves[0], leaves[1], matched_B=matched, temperature=leaves[2])
    found = alone(leaves[0], leaves[1], **ids, temperature=leaves[2], same_image="negative", mean_over="all")
    torch.testing.assert_close(
        _value_and_gradients(found.loss, leaves),
        _value_and_gradients(expected, leaves),
        rtol=1e-10,
        atol=1e-14,
    )
    hits = (leaves[0] @ leaves[1].T).argmax(1) == torch.arange(rows)
    assert found.accuracy == ((hits & matched).sum(), matched.sum())


def test_counts_are_rows_with_a_true_match_in_each_direction() -> None:
    ids = torch.tensor([[0, 1, 2, 3], [3, 0, 0, 9]])
    both = find_matches(*ids, own=slice(0, 4))
    assert (both.rows_G.sum(), both.columns_G.sum()) == (2, 3)
    mask = find_matches(*ids, own=slice(0, 4), same_image="mask")
    assert (mask.rows_G.sum(), mask.columns_G.sum()) == (0, 0)


def test_matches_in_figures() -> None:
    """Photo 5 three times, its captions twice and once more beside another photo."""
    x_ids, y_ids = torch.tensor([5, 5, 7, 5, 8]), torch.tensor([5, 9, 5, 5, 8])
    found = find_matches(x_ids, y_ids, own=slice(1, 5))
    assert found.rows_G.tolist() == [True, True, False, True, True]
    assert found.columns_G.tolist() == [True, False, True, True, True]
    torch.testing.assert_close(found.row_shares_B, torch.tensor([1 / 3, 0, 1 / 3, 1]).double())
    torch.testing.assert_close(found.column_shares_B, torch.tensor([1 / 3, 0, 1 / 3, 1]).double())
    assert found.y_groups_G is not None
    assert found.y_groups_G[0] == found.y_groups_G[2] == found.y_groups_G[3] == found.x_groups_B[0]
    assert len(set(found.y_groups_G.tolist())) == 3


def test_columns_that_come_once_are_their_own_groups() -> None:
    found = find_matches(torch.tensor([7, 5, 5, 4]), torch.tensor([5, 7, 9, 8]), own=slice(0, 4))
    assert found.y_groups_G is None
    assert found.x_groups_B[:3].tolist() == [1, 0, 0]
    assert found.row_shares_B.tolist() == [1, 1, 1, 0]
    assert found.column_shares_B.tolist() == [1, 0.5, 0.5, 0]


def test_row_without_match_stays_a_negative_of_the_others() -> None:
    image, text = _rows(1, rows=2), _rows(2, rows=2).requires_grad_()
    loss = alone(image, text, image_ids=[0, 1], caption_ids=[0, 9], temperature=torch.ones(1).double()).loss
    (gradient,) = torch.autograd.grad(loss, text)
    # caption 1 is no image's: what it feels is image 0, whose one negative it is, in one of two directions
    share = (image[0] @ text.T).softmax(0)[1]
    torch.testing.assert_close(gradient[1], share.detach() * image[0] / 2)


@pytest.mark.parametrize("mean_over", ["matched", "all"])
@pytest.mark.parametrize("same_image", SAME_IMAGE)
def test_no_true_match_gives_exactly_zero(same_image: SameImage, mean_over: MeanOver) -> None:
    leaves = _leaves(temperature=1e-3)
    found = alone(
        leaves[0],
        leaves[1],
        image_ids=[0, 1, 2, 3, 4, 5],
        caption_ids=[6, 7, 8, 9, 10, 11],
        temperature=leaves[2],
        same_image=same_image,
        mean_over=mean_over,
    )
    found.loss.backward()
    assert found.loss.item() == 0
    assert found.accuracy == (0, 0)
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.count_nonzero() == 0


@pytest.mark.parametrize(("alpha", "tolerance"), [(14.3, 2e-6), (100.0, 1e-5), (1000.0, 1e-4)])
def test_float32_at_every_temperature_of_the_clamp(alpha: float, tolerance: float) -> None:
    """1000 is the clamp's end: exp overflows there without a running maximum, and float64 sums without two slots."""
    # all rows point the same way but one, whose log-sum-exp lies far below: one shift does not serve all
    ahead, aside = torch.eye(16).double()[:2]
    image = F.normalize(ahead + 0.5 * _rows(1, rows=32, width=16), dim=-1)
    text = F.normalize(image + 0.1 * _rows(2, rows=32, width=16), dim=-1)
    image[5], text[9] = -ahead, aside
    rows, columns = ((alpha * image @ text.T).logsumexp(dim) for dim in (1, 0))
    assert rows.max() - rows.min() > 0.7 * alpha and columns.max() - columns.min() > 0.7 * alpha
    losses, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        # the same numbers in both, so that only the arithmetic differs
        x, y = (t.float().to(dtype).requires_grad_() for t in (image, text))
        temperature = torch.tensor([1 / alpha], dtype=torch.float32).to(dtype).requires_grad_()
        ids = list(range(32))
        loss = alone(x, y, image_ids=ids, caption_ids=ids, temperature=temperature).loss
        losses.append(loss.item())
        gradients.append([g.double() for g in torch.autograd.grad(loss, (x, y, temperature))])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for exact, found in zip(*gradients, strict=True):
        assert (found - exact).norm() / exact.norm() < tolerance


def test_log_sums_travel_at_every_temperature() -> None:
    """From -1000 to 1000, far beyond what one float64 sum of exponentials holds; -inf and NaN arrive as such."""
    generator = torch.Generator().manual_seed(0)
    logs = (torch.rand(4, 500, generator=generator, dtype=torch.float64) - 0.5) * 2000
    logs[:, 0], logs[:2, 1], logs[1, 2] = -torch.inf, -torch.inf, torch.nan
    logs[:, 3] = torch.tensor([0.5, -0.5, 0.0, -1e-9])
    found = from_sums(torch.stack([to_sums(row) for row in logs]).sum(0))
    torch.testing.assert_close(found, logs.logsumexp(0), rtol=0, atol=1e-11, equal_nan=True)
    assert found[2].isnan() and found[0] == -torch.inf


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
            loss = alone(x, y, image_ids=ids, caption_ids=ids, temperature=temperature).loss
        results.append((loss, torch.cat(torch.autograd.grad(loss, (x, y))).double()))
    (exact, exact_gradient), (ours, gradient) = results
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (gradient - exact_gradient).norm() / exact_gradient.norm() < 4e-3


def test_accuracy_counts_any_true_match() -> None:
    image = torch.eye(4).double()
    text = image[[0, 0, 3, 2]]
    found = alone(
        image, text, image_ids=[5, 6, 7, 7], caption_ids=[9, 5, 7, 7], temperature=torch.ones(1).double()
    )
    # image 0: captions 0 (false) and 1 (true) tie, the first wins; 1: no match; 2 and 3: each other's caption
    assert found.accuracy == (2, 3)
    own = alone(
        image,
        text,
        image_ids=[5, 6, 7, 7],
        caption_ids=[9, 5, 7, 7],
        temperature=torch.ones(1).double(),
        same_image="mask",
    )
    # each other's caption is left out: 2 and 3 now find their own, and nobody else counts
    assert own.accuracy[1] == 2


def test_pairs_share_columns() -> None:
    """Two contrasts with one set and one with another, each with a temperature of its own; all add to the captions."""
    ids = torch.arange(6)
    results = []
    for tiled in (True, False):
        image, other, text, more = leaves = [_rows(seed).requires_grad_() for seed in (1, 2, 3, 4)]
        temperatures = [torch.tensor([t]).double().requires_grad_() for t in (0.3, 0.1, 0.2)]
        compared = [(image, 0), (other, 0), (image, 1)]
        if tiled:
            columns = Columns(ALONE, torch.stack([ids, ids], 1))
            columns.send(text, more)
            pairs = [
                IdPair(x, columns=columns, position=position, temperature=t)
                for (x, position), t in zip(compared, temperatures, strict=True)
            ]
            losses, _ = contrast(pairs, exchange=ALONE, riders=torch.zeros(0))
        else:
            losses = tuple(
                plain.image_text(x, (text, more)[position], x_ids_G=ids, y_ids_G=ids, temperature=t)
                for (x, position), t in zip(compared, temperatures, strict=True)
            )
        total = losses[0] + 2 * losses[1] + 3 * losses[2]
        results.append(torch.autograd.grad(total, [*leaves, *temperatures]))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("sets", [1, 3])
def test_a_step_leaves_nothing_behind(sets: int) -> None:
    """Columns hold the features of all ranks; autograd's nodes and they must not keep each other alive."""
    gc.disable()
    try:
        columns = Columns(ALONE, torch.arange(12).reshape(6, 2))
        columns.send(*(_rows(seed).requires_grad_() for seed in range(sets)))
        x = _rows(9).requires_grad_()
        pairs = [
            IdPair(x, columns=columns, position=number, temperature=torch.ones(1).double())
            for number in range(sets)
        ]
        losses, _ = contrast(pairs, exchange=ALONE, riders=torch.zeros(0))
        torch.stack(losses).sum().backward()
        left = weakref.ref(columns)
        del columns, pairs, losses
        assert left() is None
    finally:
        gc.enable()


def test_captions_that_are_not_trained_get_nothing_back() -> None:
    """A frozen text encoder: nothing sets out that nobody would wait for."""

    class Watched(WorldExchange):
        returned = 0

        def scatter_sum(self, rows: Tensor) -> Any:
            self.returned += 1
            return super().scatter_sum(rows)

    for is_trained in (False, True):
        exchange = Watched(World(0, 1, 0, torch.device("cpu")))
        columns = Columns(exchange, torch.arange(6)[:, None].expand(6, 2))
        text = _rows(2).requires_grad_(is_trained)
        columns.send(text)
        x = _rows(1).requires_grad_()
        pair = IdPair(x, columns=columns, temperature=torch.ones(1).double())
        (loss,), _ = contrast([pair], exchange=exchange, riders=torch.zeros(0))
        loss.backward()
        assert exchange.returned == is_trained
        assert x.grad is not None and x.grad.norm() > 0


def test_gradient_is_exact_for_autograd_too() -> None:
    """torch's own check of a Function, against finite differences, of x, y and temperature together."""
    ids: dict[str, Any] = {"image_ids": [0, 1, 1, 3], "caption_ids": [0, 1, 5, 0]}

    def function(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
        return alone(x, y, **ids, temperature=temperature).loss

    assert torch.autograd.gradcheck(function, _leaves(rows=4), eps=1e-6, atol=1e-7)
