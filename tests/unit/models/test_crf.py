from itertools import pairwise, product

import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from promptmeup.errors import ConfigError
from promptmeup.models.crf import ConditionalRandomField, forbidden_moves

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
FREE = ("O", "B-PER", "B-LOC", "B-ORG", "B-MISC")
"""five tags, any of which can follow any"""
LABEL_SETS = (LABELS, FREE, ("I-LOC", "B-LOC", "O"), ("B-PER", "O", "I-PER", "B-LOC"), ("O",))


def _crf(
    labels: tuple[str, ...] = LABELS, *, scale: float = 1.0, constrain_training: bool = True
) -> ConditionalRandomField:
    crf = ConditionalRandomField(labels, constrain_training=constrain_training)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return crf


def _sound(labels: tuple[str, ...], tags: list[int]) -> bool:
    names = ["O", *(labels[tag] for tag in tags)]
    return all(
        not after.startswith("I-") or before in (f"B-{after[2:]}", f"I-{after[2:]}")
        for before, after in pairwise(names)
    )


def _every_score(
    crf: ConditionalRandomField, emissions_WT: Tensor, *, sound: bool
) -> tuple[list[list[int]], Tensor]:
    """Return every sequence (that keeps to BIO) and its score."""
    sequences = [list(y) for y in product(range(len(crf.labels)), repeat=len(emissions_WT))]
    sequences = [y for y in sequences if not sound or _sound(crf.labels, y)]
    tags_SW = torch.tensor(sequences)
    scores_S = emissions_WT[torch.arange(len(emissions_WT)), tags_SW].sum(1)
    scores_S = scores_S + crf.transitions[tags_SW[:, :-1], tags_SW[:, 1:]].sum(1)
    return sequences, scores_S + crf.start[tags_SW[:, 0]] + crf.end[tags_SW[:, -1]]


def _slow(crf: ConditionalRandomField, emissions_BLT: Tensor, tags_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the log-likelihoods by the scores of all sequences; differentiable."""
    found = []
    for emissions_LT, tags_L, mask_L in zip(emissions_BLT, tags_BL, mask_BL, strict=True):
        if not mask_L.any():
            found.append(emissions_BLT.new_zeros(()))
            continue
        gold = tags_L[mask_L].tolist()
        sound = crf.constrain_training and _sound(crf.labels, gold)
        sequences, scores_S = _every_score(crf, emissions_LT[mask_L], sound=sound)
        found.append(scores_S[sequences.index(gold)] - scores_S.logsumexp(0))
    return torch.stack(found)


def _gradients(crf: ConditionalRandomField, values_B: Tensor, emissions_BLT: Tensor) -> list[Tensor]:
    """Return those of a weighted sum, of the emissions and of each parameter."""
    weights_B = torch.linspace(-1, 2, len(values_B), dtype=values_B.dtype)
    return list(torch.autograd.grad((weights_B * values_B).sum(), [emissions_BLT, *crf.parameters()]))


def _random(crf: ConditionalRandomField, mask_BL: Tensor, *, sound: bool) -> tuple[Tensor, Tensor]:
    """Return emissions and gold; where the mask is false they are NaN and -100."""
    emissions_BLT = 2 * torch.randn(*mask_BL.shape, len(crf.labels))
    tags_BL = torch.randint(len(crf.labels), mask_BL.shape)
    if sound:
        for tags_L, mask_L in zip(tags_BL, mask_BL, strict=True):
            before = "O"
            for place in mask_L.nonzero()[:, 0].tolist():
                choices = [
                    i for i, label in enumerate(crf.labels) if label[0] != "I" or before[1:] == label[1:]
                ]
                tags_L[place] = choices[int(tags_L[place]) % len(choices)]
                before = crf.labels[int(tags_L[place])]
    return emissions_BLT.masked_fill(~mask_BL[..., None], torch.nan), tags_BL.masked_fill(~mask_BL, -100)


masks = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(masks, st.sampled_from(LABEL_SETS), st.booleans(), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_against_every_sequence(
    mask: list[list[bool]], labels: tuple[str, ...], constrain: bool, sound: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    crf = _crf(labels, constrain_training=constrain).double()
    mask_BL = torch.tensor(mask)
    emissions_BLT, tags_BL = _random(crf, mask_BL, sound=sound)
    emissions_BLT = emissions_BLT.double().requires_grad_()
    found_B = crf(emissions_BLT, tags_BL, mask_BL)
    expected_B = _slow(crf, emissions_BLT, tags_BL, mask_BL)
    torch.testing.assert_close(found_B, expected_B)
    if mask_BL.any():
        expected = _gradients(crf, expected_B, emissions_BLT)
        for a, b in zip(_gradients(crf, found_B, emissions_BLT), expected, strict=True):
            torch.testing.assert_close(a, b)

    for tags, emissions_LT, mask_L in zip(
        crf.decode(emissions_BLT, mask_BL), emissions_BLT, mask_BL, strict=True
    ):
        assert len(tags) == mask_L.sum()
        if tags:
            sequences, scores_S = _every_score(crf, emissions_LT[mask_L], sound=True)
            torch.testing.assert_close(scores_S[sequences.index(tags)], scores_S.max())


@pytest.mark.parametrize("length", [1, 2, 40])
def test_against_pytorch_crf(length: int) -> None:
    """Where it is right: masks without holes, no constraints."""
    torch.manual_seed(0)
    ours = _crf(FREE)
    peer = torchcrf.CRF(len(FREE), batch_first=True)
    pairs = [
        (ours.start, peer.start_transitions),
        (ours.transitions, peer.transitions),
        (ours.end, peer.end_transitions),
    ]
    for mine, theirs in pairs:
        theirs.data.copy_(mine.data)
    emissions_BLT = torch.randn(7, length, len(FREE), requires_grad=True)
    tags_BL = torch.randint(len(FREE), (7, length))
    mask_BL = torch.arange(length) < torch.randint(1, length + 1, (7, 1))
    found_B = ours(emissions_BLT, tags_BL, mask_BL)
    expected_B = peer(emissions_BLT, tags_BL, mask_BL, reduction="none")
    torch.testing.assert_close(found_B, expected_B, rtol=1e-5, atol=1e-5)
    assert ours.decode(emissions_BLT, mask_BL) == peer.decode(emissions_BLT, mask_BL)
    for a, b in [(emissions_BLT, emissions_BLT), *pairs]:
        found, expected = (
            torch.autograd.grad(v.sum(), x, retain_graph=True, materialize_grads=True)[0]
            for v, x in ((found_B, a), (expected_B, b))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_with_holes_is_the_chain_of_its_true_places() -> None:
    """pytorch-crf reads the transitions of the tags in the holes, and ends at a wrong place; nothing is said."""
    torch.manual_seed(0)
    crf = _crf()
    emissions_BLT = torch.randn(1, 6, 5)
    tags_BL = torch.tensor([[1, 0, 2, 0, 0, 3]])
    mask_BL = torch.tensor([[True, False, True, False, False, True]])
    short = emissions_BLT[mask_BL][None], tags_BL[mask_BL][None], torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(crf(emissions_BLT, tags_BL, mask_BL), crf(*short))

    peer = torchcrf.CRF(5, batch_first=True)
    for mine, theirs in zip(
        (crf.start, crf.end, crf.transitions),
        (peer.start_transitions, peer.end_transitions, peer.transitions),
        strict=True,
    ):
        theirs.data.copy_(mine.data)
    wrong = peer(emissions_BLT, tags_BL, mask_BL, reduction="none")
    right = peer(*short, reduction="none")
    assert (wrong - right).abs() > 0.1


def test_first_derivatives_by_differences() -> None:
    torch.manual_seed(0)
    crf = _crf().double()
    mask_BL = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
    tags_BL = torch.tensor([[1, 0, 2, 0], [0] * 4, [0, 4, 0, 0]])  # the last row breaks BIO
    emissions_BLT = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda e, *_: crf(e, tags_BL, mask_BL), (emissions_BLT, *crf.parameters())
    )


def test_a_row_without_a_word_gives_nothing() -> None:
    torch.manual_seed(0)
    crf = _crf()
    emissions_BLT = torch.randn(2, 4, 5, requires_grad=True)
    mask_BL = torch.tensor([[False] * 4, [True, True, False, False]])
    values_B = crf(emissions_BLT, torch.zeros(2, 4, dtype=torch.int64), mask_BL)
    values_B.sum().backward()
    assert values_B[0] == 0 and values_B[1] < 0
    assert emissions_BLT.grad is not None and not emissions_BLT.grad[0].any() and emissions_BLT.grad[1].any()
    assert crf.decode(emissions_BLT, mask_BL)[0] == []
    nothing_B = crf(emissions_BLT, torch.full((2, 4), -100), torch.zeros_like(mask_BL))
    crf.zero_grad()
    nothing_B.sum().backward()
    assert not nothing_B.any()
    assert all(p.grad is not None and not p.grad.any() for p in crf.parameters())


def test_gold_that_breaks_bio_is_scored_among_all_sequences() -> None:
    torch.manual_seed(0)
    crf = _crf()
    emissions_BLT = torch.randn(3, 3, 5, requires_grad=True)
    mask_BL = torch.ones(3, 3, dtype=torch.bool)
    tags_BL = torch.tensor([[1, 2, 0], [0, 2, 2], [2, 0, 0]])  # sound; O -> I-PER; starts with I-PER
    values_B = crf(emissions_BLT, tags_BL, mask_BL)
    crf.constrain_training = False
    free_B = crf(emissions_BLT, tags_BL, mask_BL)
    torch.testing.assert_close(values_B[1:], free_B[1:])
    assert values_B[0] > free_B[0] + 0.01  # fewer sequences share the probability
    values_B.sum().backward()
    assert values_B.isfinite().all()
    assert emissions_BLT.grad is not None and emissions_BLT.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in crf.parameters())


def test_forbidden_moves_get_no_gradient_from_sound_gold() -> None:
    torch.manual_seed(0)
    crf = _crf()
    tags_BL = torch.tensor([[1, 2, 0, 3, 4]])
    crf(torch.randn(1, 5, 5), tags_BL, torch.ones_like(tags_BL, dtype=torch.bool)).sum().backward()
    start_T, moves_TT = forbidden_moves(LABELS)
    assert crf.transitions.grad is not None and crf.start.grad is not None
    assert not crf.transitions.grad[moves_TT].any() and crf.transitions.grad[~moves_TT].all()
    assert not crf.start.grad[start_T].any() and crf.start.grad[~start_T].all()


@pytest.mark.parametrize("constrain", [True, False])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_scores(scale: float, constrain: bool) -> None:
    torch.manual_seed(0)
    crf = _crf(scale=scale, constrain_training=constrain)
    mask_BL = torch.rand(20, 4) < 0.8
    tags_BL = torch.randint(5, (20, 4))
    emissions_BLT = (scale * torch.randn(20, 4, 5)).requires_grad_()
    values_B = crf(emissions_BLT, tags_BL, mask_BL)
    gradients = _gradients(crf, values_B, emissions_BLT)
    decoded = crf.decode(emissions_BLT, mask_BL)
    exact = crf.double()
    wide_BLT = emissions_BLT.detach().double().requires_grad_()
    expected_B = _slow(exact, wide_BLT, tags_BL, mask_BL)
    torch.testing.assert_close(values_B.double(), expected_B, rtol=1e-6, atol=1e-6 * scale)
    for a, b in zip(gradients, _gradients(exact, expected_B, wide_BLT), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
    assert decoded == exact.decode(wide_BLT, mask_BL)
    assert all(_sound(LABELS, tags) for tags in decoded)


def test_a_small_loss_is_not_rounded_away() -> None:
    """Gold's score is 2,400 here and that of all sequences hardly more: float32 knows each to 1e-4 only."""
    torch.manual_seed(0)
    crf = _crf()
    tags_BL = torch.tensor([[0, 1, 2, 2, 3, 4, 0, 0] * 25])
    mask_BL = torch.ones_like(tags_BL, dtype=torch.bool)
    emissions_BLT = torch.randn(1, 200, 5) + 12 * torch.nn.functional.one_hot(tags_BL, 5)
    value = crf(emissions_BLT, tags_BL, mask_BL).double()
    expected = crf.double()(emissions_BLT.double(), tags_BL, mask_BL)
    assert -2e-2 < expected < -1e-3
    torch.testing.assert_close(value, expected, rtol=2e-3, atol=0)


def test_wide_arithmetic_whatever_comes_in() -> None:
    torch.manual_seed(0)
    crf = _crf().bfloat16()
    mask_BL = torch.rand(4, 30) < 0.7
    tags_BL = torch.randint(5, (4, 30))
    emissions_BLT = torch.randn(4, 30, 5).bfloat16().requires_grad_()
    values_B = crf(emissions_BLT, tags_BL, mask_BL)
    values_B.sum().backward()
    assert values_B.dtype == torch.float32
    assert emissions_BLT.grad is not None and emissions_BLT.grad.dtype == torch.bfloat16
    decoded = crf.decode(emissions_BLT, mask_BL)
    wide = crf.float()
    torch.testing.assert_close(values_B, wide(emissions_BLT.float(), tags_BL, mask_BL), rtol=0, atol=0)
    assert decoded == wide.decode(emissions_BLT.float(), mask_BL)
    assert wide(emissions_BLT.double(), tags_BL, mask_BL).dtype == torch.float64


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    crf = _crf()
    mask_BL = torch.rand(4, 30) < 0.7
    tags_BL = torch.randint(5, (4, 30))
    emissions_BLT = torch.randn(4, 30, 5, requires_grad=True)
    plain_B = crf(emissions_BLT, tags_BL, mask_BL)
    plain = _gradients(crf, plain_B, emissions_BLT)
    with torch.autocast("cpu", torch.bfloat16):
        values_B = crf(emissions_BLT, tags_BL, mask_BL)
        gradients = _gradients(crf, values_B, emissions_BLT)
        assert crf.decode(emissions_BLT, mask_BL) == crf.decode(emissions_BLT, mask_BL.clone())
    for a, b in zip([values_B, *gradients], [plain_B, *plain], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("constrain", [True, False])
def test_no_parameter_is_kept_for_the_backward_pass(constrain: bool) -> None:
    """ZeRO-3 frees their storage in between; and DeepSpeed cannot take parameters without a dimension."""
    crf = _crf(FREE, constrain_training=constrain)
    own = {parameter.untyped_storage().data_ptr() for parameter in crf.parameters()}
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    tags_BL = torch.zeros(2, 3, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        crf(torch.randn(2, 3, 5), tags_BL, tags_BL == 0).sum().backward()
    assert kept and not own & set(kept)
    assert all(parameter.ndim >= 1 for parameter in crf.parameters())


def test_half_precision_keeps_the_constraints() -> None:
    torch.manual_seed(0)
    crf = _crf().half()
    emissions_BLT = 10 * torch.randn(20, 9, 5).half()
    decoded = crf.decode(emissions_BLT, torch.ones(20, 9, dtype=torch.bool))
    assert all(_sound(LABELS, tags) for tags in decoded)
    greedy = emissions_BLT.argmax(2).tolist()
    assert not all(_sound(LABELS, tags) for tags in greedy)


def test_descent_learns_a_transition() -> None:
    """Emissions say nothing of the second word; what stands before it does."""
    torch.manual_seed(0)
    crf = ConditionalRandomField(LABELS)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    tags_BL = torch.tensor([[1, 2, 0], [3, 4, 0], [0, 3, 0], [1, 2, 2]])
    mask_BL = torch.ones_like(tags_BL, dtype=torch.bool)
    emissions_BLT = 5.0 * torch.nn.functional.one_hot(tags_BL, 5)
    emissions_BLT[:, 1] = 0
    first = crf(emissions_BLT, tags_BL, mask_BL).mean()
    for _ in range(100):
        optimizer.zero_grad()
        (-crf(emissions_BLT, tags_BL, mask_BL).mean()).backward()
        optimizer.step()
    assert crf(emissions_BLT, tags_BL, mask_BL).mean() > 0.3 * first
    assert crf.decode(emissions_BLT, mask_BL) == tags_BL.tolist()
    assert (
        crf.transitions[1, 2] > crf.transitions[1, 0] + 1
        and crf.transitions[3, 4] > crf.transitions[3, 0] + 1
    )


def test_forbidden_moves_are_those_of_bio() -> None:
    start_T, moves_TT = forbidden_moves(LABELS)
    assert start_T.tolist() == [False, False, True, False, True]
    found = {
        f"{LABELS[before]} {LABELS[after]}"
        for before in range(5)
        for after in range(5)
        if moves_TT[before, after]
    }
    assert found == {"O I-PER", "O I-LOC", "B-PER I-LOC", "I-PER I-LOC", "B-LOC I-PER", "I-LOC I-PER"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "an empty list"),
        (["O", "X", "B-"], r"not \['X', 'B-'\]"),
        (["O", "B-PER", "O"], r"3 tags, but \['O'\] more than once"),
        (["O", "B-PER", "I-LOC"], r"\['I-LOC'\] can follow nothing: add \['B-LOC'\]"),
    ],
)
def test_wrong_labels_are_named(labels: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConditionalRandomField(labels)


def test_our_own_mistakes_are_asserted() -> None:
    crf = ConditionalRandomField(LABELS)
    emissions_BLT, tags_BL = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
    mask_BL = tags_BL == 0
    with pytest.raises(AssertionError, match=r"emissions \(2, 3, 4\), 5 tags"):
        crf(emissions_BLT[..., :4], tags_BL, mask_BL)
    with pytest.raises(AssertionError, match=r"emissions \(2, 5\), 5 tags"):
        crf.decode(emissions_BLT[:, 0], mask_BL)
    with pytest.raises(AssertionError, match=r"emissions are torch.int64"):
        crf.decode(emissions_BLT.long(), mask_BL)
    with pytest.raises(AssertionError, match=r"mask is torch.int64, not bool"):
        crf(emissions_BLT, tags_BL, mask_BL.long())
    with pytest.raises(AssertionError, match=r"mask \(2, 2\)"):
        crf.decode(emissions_BLT, mask_BL[:, :2])
    with pytest.raises(AssertionError, match=r"tags \(2, 2\), mask \(2, 3\)"):
        crf(emissions_BLT, tags_BL[:, :2], mask_BL)
    for wrong in (-1, 5):
        tags_BL[1, 2] = wrong
        with pytest.raises(AssertionError, match=rf"5 tags, but tagged \[{wrong}\] in the mask"):
            crf(emissions_BLT, tags_BL, mask_BL)
        mask_BL[1, 2] = False
        assert crf(emissions_BLT, tags_BL, mask_BL).isfinite().all()
        mask_BL[1, 2] = True


def test_log_partition_is_the_sum_over_every_sound_sequence() -> None:
    torch.manual_seed(0)
    crf = _crf()
    emissions_BLT = torch.randn(3, 4, len(LABELS), dtype=torch.float64)
    mask_BL = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    found_B = crf.log_partition(emissions_BLT, mask_BL)
    for row in range(2):
        _, scores = _every_score(crf, emissions_BLT[row][mask_BL[row]], sound=True)
        torch.testing.assert_close(found_B[row], scores.logsumexp(0), atol=1e-7, rtol=1e-7)
    assert found_B[2] == 0


def test_without_gold_the_call_decodes_in_place() -> None:
    """ZeRO-3 gathers parameters at the call of a module, and not for its other methods."""
    torch.manual_seed(0)
    crf = _crf()
    emissions_BLT = torch.randn(3, 5, len(LABELS))
    mask_BL = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]]).bool()
    tags_BL = crf(emissions_BLT, None, mask_BL)
    assert tags_BL.dtype == torch.int64
    assert (tags_BL[~mask_BL] == -1).all()
    assert [tags_BL[row][mask_BL[row]].tolist() for row in range(3)] == crf.decode(emissions_BLT, mask_BL)
