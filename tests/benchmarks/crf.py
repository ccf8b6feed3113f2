"""The CRF against pytorch-crf: the loss with its gradient, and decoding; one thread of a CPU.

The loss over all sequences, and over those that keep to BIO, which pytorch-crf is given by transitions of -10,000;
decoding keeps to BIO. Masks have no holes and gold keeps to BIO: pytorch-crf is wrong on the one, and the other would
cost it 10,000. Both sides must first give the loss, the gradient and the tags of float64. Ours runs twice in each
turn; how much these two differ is the noise below which no ratio means anything ("A/A").
"""

from collections.abc import Callable

import numpy as np
import torch
import torchcrf
from torch import Tensor, nn

from promptmeup.models.crf import ConditionalRandomField
from tests.benchmarks import harness

OURS, AGAIN, PEER = "promptmeup", "promptmeup again", "pytorch-crf"
ROWS, WORDS, SHORTEST = 32, 128, 32
LABELS = (
    "O",
    *(f"{place}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC", "TIME", "WORK") for place in "BI"),
)
WARMUPS, REPEATS = 3, 31
LIMIT = 1e-4
"""largest relative error with which a side is timed"""

Case = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class WrongResultError(RuntimeError):
    """A side does not compute the loss, its gradient, or the tags."""


def sides(*, seed: int, bio: bool) -> tuple[ConditionalRandomField, torchcrf.CRF]:
    """Return both with the same parameters, trained on all sequences or on those that keep to BIO."""
    torch.manual_seed(seed)
    ours = ConditionalRandomField(LABELS, constrain_training=bio)
    peer = torchcrf.CRF(len(LABELS), batch_first=True)
    with torch.no_grad():
        for mine, theirs in zip(parameters(ours), parameters(peer), strict=True):
            mine.copy_(theirs)
        if bio:
            peer.start_transitions[ours.forbidden_start_T] = -1e4
            peer.transitions[ours.forbidden_TT] = -1e4
    return ours, peer


def case(ours: ConditionalRandomField, *, seed: int) -> Case:
    """Return emissions, gold that keeps to BIO and that they hint at, and the mask of 32 to 128 words a row."""
    torch.manual_seed(seed)
    lengths_B1 = torch.randint(SHORTEST, WORDS + 1, (ROWS, 1))
    lengths_B1[0] = WORDS
    hints_BLT = torch.randn(ROWS, WORDS, len(LABELS))
    tags_BL = torch.tensor(ours.decode(hints_BLT, torch.ones(ROWS, WORDS, dtype=torch.bool)))
    return hints_BLT + torch.randn_like(hints_BLT), tags_BL, torch.arange(WORDS) < lengths_B1


def losses(ours: ConditionalRandomField, peer: torchcrf.CRF) -> dict[str, Loss]:
    return {
        OURS: lambda emissions, tags, mask: -ours(emissions, tags, mask).mean(),
        PEER: lambda emissions, tags, mask: -peer(emissions, tags, mask, reduction="mean"),
    }


def parameters(crf: ConditionalRandomField | torchcrf.CRF) -> list[Tensor]:
    if isinstance(crf, ConditionalRandomField):
        return [crf.start, crf.transitions, crf.end]
    return [crf.start_transitions, crf.transitions, crf.end_transitions]


def answer(loss: Loss, of: list[Tensor], given: Case) -> list[Tensor]:
    """Return the loss, and the gradients of the emissions and of the parameters, float64."""
    emissions_BLT, tags_BL, mask_BL = given
    emissions_BLT = emissions_BLT.detach().clone().requires_grad_()
    value = loss(emissions_BLT, tags_BL, mask_BL)
    found = [value, *torch.autograd.grad(value, [emissions_BLT, *of])]
    return [tensor.detach().double() for tensor in found]


def gate(*, bio: bool) -> dict[str, float]:
    """Return each side's largest relative error; raise where one is wrong. On two cases, so nothing stale passes."""
    errors = dict.fromkeys((OURS, PEER), 0.0)
    for seed in (1, 2):
        ours, peer = sides(seed=seed, bio=bio)
        given = case(ours, seed=seed)
        found = {
            name: answer(loss, parameters(ours if name == OURS else peer), given)
            for name, loss in losses(ours, peer).items()
        }
        tags = {OURS: ours.decode(given[0], given[2]), PEER: peer.decode(given[0], given[2])}
        exact = peer.double()
        wide = (given[0].double(), *given[1:])
        expected = answer(losses(ours, exact)[PEER], parameters(exact), wide)
        for name, values in found.items():
            pairs = zip(values, expected, strict=True)
            errors[name] = max(errors[name], *(((a - b).norm() / b.norm()).item() for a, b in pairs))
        expected_tags = exact.decode(wide[0], wide[2])
        wrong = [name for name in found if not errors[name] < LIMIT or (bio and tags[name] != expected_tags)]
        if wrong:
            raise WrongResultError(
                f"{wrong}: errors {errors} (allowed {LIMIT}), or other tags; nothing is timed"
            )
    return errors


def _step(loss: Loss, module: nn.Module, given: Case) -> Callable[[], object]:
    leaf_BLT = given[0].clone().requires_grad_()

    def step() -> None:
        leaf_BLT.grad = None
        module.zero_grad()
        loss(leaf_BLT, *given[1:]).backward()

    return step


def measure() -> tuple[list[harness.Row], dict[str, float]]:
    """32 rows of up to 128 words, 13 tags."""
    torch.set_num_threads(1)
    rows: list[harness.Row] = []
    summary: dict[str, float] = {}

    def compare(
        what: str, key: str, timed: dict[str, Callable[[], object]], errors: dict[str, float]
    ) -> None:
        seconds = harness.interleave({**timed, AGAIN: timed[OURS]}, repeats=REPEATS, warmups=WARMUPS)
        times = {name: harness.spread(values) for name, values in seconds.items()}
        again = times[AGAIN].median / times[OURS].median
        summary[key] = float(np.median(np.array(seconds[PEER]) / np.array(seconds[OURS])))
        summary[f"{key}_noise"] = abs(again - 1)
        rows.extend(
            {
                "what": what,
                "side": name,
                "ms": 1000 * times[name].median,
                "p25": 1000 * times[name].p25,
                "p75": 1000 * times[name].p75,
                "times as fast": summary[key] if name == OURS else None,
                "A/A": again if name == OURS else None,
                "error": errors[name],
            }
            for name in (OURS, PEER)
        )

    for bio in (False, True):
        errors = gate(bio=bio)
        ours, peer = sides(seed=3, bio=bio)
        given = case(ours, seed=3)
        of = losses(ours, peer)
        what = f"loss and gradient, {'BIO' if bio else 'all'} sequences"
        key = "crf_bio_vs_pytorch_crf" if bio else "crf_vs_pytorch_crf"
        compare(what, key, {OURS: _step(of[OURS], ours, given), PEER: _step(of[PEER], peer, given)}, errors)
    emissions_BLT, _, mask_BL = given
    decoders: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.decode(emissions_BLT, mask_BL),
        PEER: lambda: peer.decode(emissions_BLT, mask_BL),
    }
    compare("decoding", "crf_decode_vs_pytorch_crf", decoders, errors)
    return rows, summary


if __name__ == "__main__":
    harness.run("crf", measure)
