"""A linear-chain conditional random field over BIO tags.

    log p(y | x) = s(y) - log Σ_y' exp s(y')        s(y) = a(y_1) + Σ_t e_t(y_t) + Σ_{t>1} A(y_{t-1}, y_t) + z(y_W)

with e the emissions, A the transitions, a and z the scores of starting and ending (Lafferty et al. 2001). Here T counts
tags and W words, the positions of a row at which its mask is true: holes, such as the later sub-words of a word, are
no part of the chain, wherever they are.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from promptmeup.errors import ConfigError

# Finite, so that a softmax over nothing else is no NaN; thousands of them do not overflow float32.
_FORBIDDEN = -1e30


def forbidden_moves(labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return with which tags a chain cannot start [T], and which cannot follow which [T (before), T], both bool.

    BIO: ``I-X`` comes after ``B-X`` or ``I-X`` only.

    Raises:
        ConfigError: a label is not ``O``, ``B-...`` or ``I-...``, or is there twice, or is ``I-X`` without ``B-X``.
    """
    strange = [
        label for label in labels if label != "O" and (label[:2] not in ("B-", "I-") or len(label) < 3)
    ]
    if strange or not labels:
        raise ConfigError(f"tags must be O, B-TYPE and I-TYPE, not {strange or 'an empty list'}")
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ConfigError(f"{len(labels)} tags, but {twice} more than once: list each once")
    lonely = [label for label in labels if label[0] == "I" and f"B{label[1:]}" not in labels]
    if lonely:
        raise ConfigError(f"{lonely} can follow nothing: add {[f'B{label[1:]}' for label in lonely]}")
    start_T = torch.tensor([label[0] == "I" for label in labels])
    moves_TT = torch.tensor(
        [[tag[0] == "I" and before[1:] != tag[1:] for tag in labels] for before in labels]
    )
    return start_T, moves_TT


class _LogPartition(torch.autograd.Function):
    """log Σ_y exp (Σ_t u_t(y_t) + Σ_{t>1} A(y_{t-1}, y_t)) of each row, over its positions up to `last`.

    With log α_t(j) the same over the beginnings that end with j, p(y_{t-1} = i | y_t = j) is the softmax over i of
    log α_{t-1}(i) + A(i, j), which forward computes anyway and keeps; so backward is one matrix product a position,
    p(y_{t-1} = i) = Σ_j p(i | j) p(y_t = j), and needs no logarithms.

    In powers of 2: exp takes up to 13 times as long on a CPU where it underflows, as it does for every forbidden move
    (5,408 numbers, MKL: 7 to 90 μs), exp2 does not (4 μs).
    """

    @staticmethod
    def forward(ctx: Any, unary_WBT: Tensor, transitions_BTT: Tensor, last_B: Tensor) -> Tensor:
        unary_WBT, transitions_BTT = unary_WBT / math.log(2), transitions_BTT / math.log(2)
        alphas = [unary_WBT[0]]
        befores = []
        for unary_BT in unary_WBT[1:]:
            scores_BTT = alphas[-1].unsqueeze(2) + transitions_BTT
            top_B1T = scores_BTT.amax(1, keepdim=True)
            powers_BTT = scores_BTT.sub_(top_B1T).exp2_()
            sum_B1T = powers_BTT.sum(1, keepdim=True)
            befores.append(powers_BTT.div_(sum_B1T))
            alphas.append(sum_B1T.log2_().add_(top_B1T).squeeze(1) + unary_BT)
        ends_BT = _at(torch.stack(alphas), last_B) * math.log(2)
        ctx.save_for_backward(ends_BT.softmax(1), last_B, *befores)
        return ends_BT.logsumexp(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient_B,) = gradients
        ends_BT, last_B, *befores = ctx.saved_tensors
        (rows, tags), words = ends_BT.shape, len(befores) + 1
        # times the incoming gradient from the start; zero beyond the last position
        marginals_WBT = ends_BT.new_zeros(words, rows, tags)
        marginals_WBT[last_B, torch.arange(rows, device=last_B.device)] = gradient_B[:, None] * ends_BT
        marginals = marginals_WBT.unsqueeze(3).unbind()
        pairs_BTT = ends_BT.new_zeros(rows, tags, tags)
        for place in range(words - 1, 0, -1):  # in place: autocast leaves such products alone
            marginals[place - 1].baddbmm_(befores[place - 1], marginals[place])
            pairs_BTT.addcmul_(befores[place - 1], marginals[place].transpose(1, 2))
        return marginals_WBT, pairs_BTT, None


def _at(values_WBT: Tensor, place_B: Tensor) -> Tensor:
    return values_WBT[place_B, torch.arange(len(place_B), device=place_B.device)]


class ConditionalRandomField(nn.Module):
    """Scores of tag sequences, over emissions from elsewhere.

    Sequences that break BIO are never decoded, and have no probability in training either, unless `constrain_training`
    is false. Gold that breaks it (Twitter-2015 has some) is scored among all sequences: probability 0 would be an
    infinite loss, a penalty in its place a loss of nothing but the penalty.

    Computed in float32 whatever the emissions' and the parameters' type, in float64 where the emissions are, under
    autocast too. Parameters start at zero: there is no symmetry to break.

    Args:
        labels: the tags' names (see `forbidden_moves`); emissions and tags are numbered by it.
        constrain_training: sequences that break BIO have no probability in training.
    """

    forbidden_start_T: Tensor
    forbidden_TT: Tensor

    def __init__(self, labels: Sequence[str], *, constrain_training: bool = True) -> None:
        super().__init__()
        forbidden_start_T, forbidden_TT = forbidden_moves(labels)
        self.labels = tuple(labels)
        self.constrain_training = constrain_training
        self.start = nn.Parameter(torch.zeros(len(labels)))
        self.transitions = nn.Parameter(torch.zeros(len(labels), len(labels)))
        self.end = nn.Parameter(torch.zeros(len(labels)))
        # bool: a cast of the module to float16 would make -inf of the penalty
        self.register_buffer("forbidden_start_T", forbidden_start_T, persistent=False)
        self.register_buffer("forbidden_TT", forbidden_TT, persistent=False)

    def forward(self, emissions_BLT: Tensor, tags_BL: Tensor | None, mask_BL: Tensor) -> Tensor:
        """Return each row's log-likelihood [B], 0 and without a gradient where the mask has no true place.

        Args:
            emissions_BLT: any floating type; may hold anything, NaN too, where the mask is false.
            tags_BL: integers; may hold anything, such as -100, where the mask is false. None: nothing is scored, and
                what is returned are the tags of `decode` [B, L], -1 where the mask is false.
            mask_BL: bool, the positions of the chain.
        """
        if tags_BL is None:
            rows = [torch.tensor(row, device=mask_BL.device) for row in self.decode(emissions_BLT, mask_BL)]
            decoded_BL = torch.full_like(mask_BL, -1, dtype=torch.int64)
            return decoded_BL.masked_scatter(mask_BL, torch.cat(rows).long())
        self._check(emissions_BLT, mask_BL)
        assert tags_BL.shape == mask_BL.shape, f"tags {tuple(tags_BL.shape)}, mask {tuple(mask_BL.shape)}"
        outside = tags_BL[mask_BL & ((tags_BL < 0) | (tags_BL >= len(self.labels)))]
        wrong = sorted(set(outside.tolist()))
        assert not wrong, f"{len(self.labels)} tags, but tagged {wrong} in the mask"
        with torch.autocast(emissions_BLT.device.type, enabled=False):
            order_BW, lengths_B = _chain(mask_BL)
            valid_BW, last_BW = _places(order_BW.shape[1], lengths_B)
            emissions_BWT = _take(emissions_BLT, order_BW, valid_BW)
            tags_BW = tags_BL.gather(1, order_BW).where(valid_BW, 0).long()
            start_T, transitions_TT, end_T = self._scores(emissions_BWT.dtype)

            before_BV, after_BV = tags_BW[:, :-1], tags_BW[:, 1:]
            broken_BV = self.forbidden_TT[before_BV, after_BV] & valid_BW[:, 1:]
            sound_B = ~(broken_BV.any(1) | self.forbidden_start_T[tags_BW[:, 0]])
            excluded_B11 = (sound_B & self.constrain_training)[:, None, None]
            # a copy in any case: ZeRO-3 frees the parameter's storage before the backward pass
            transitions_BTT = transitions_TT.expand(len(sound_B), -1, -1).masked_fill(
                excluded_B11 & self.forbidden_TT, _FORBIDDEN
            )

            # Everything is scored relative to gold, whose own sum is then 0: rounding is relative to the loss, not to
            # the two sums whose difference it is.
            gold_BW1 = tags_BW[..., None]
            unary_BWT = emissions_BWT - emissions_BWT.gather(2, gold_BW1)
            unary_BWT = unary_BWT + last_BW[..., None] * (end_T - end_T[gold_BW1])
            start_B1T = start_T.masked_fill(excluded_B11 & self.forbidden_start_T, _FORBIDDEN)
            start_B1T = start_B1T - start_T[gold_BW1[:, :1]]
            moves_BV1 = transitions_TT[before_BV, after_BV][..., None]
            unary_BWT = torch.cat([unary_BWT[:, :1] + start_B1T, unary_BWT[:, 1:] - moves_BV1], dim=1)
            loss_B: Tensor = _LogPartition.apply(
                unary_BWT.transpose(0, 1), transitions_BTT, (lengths_B - 1).clamp(min=0)
            )
            return -loss_B.where(lengths_B > 0, 0)

    @torch.no_grad()
    def decode(self, emissions_BLT: Tensor, mask_BL: Tensor) -> list[list[int]]:
        """Return each row's most probable tags that keep to BIO, one for every true place of its mask (Viterbi).

        At ZeRO-3 call the module with tags None instead, so that its parameters are gathered.
        """
        self._check(emissions_BLT, mask_BL)
        order_BW, lengths_B = _chain(mask_BL)
        valid_BW, last_BW = _places(order_BW.shape[1], lengths_B)
        emissions_BWT = _take(emissions_BLT, order_BW, valid_BW)
        start_T, transitions_TT, end_T = self._scores(emissions_BWT.dtype)
        transitions_TT = transitions_TT.masked_fill(self.forbidden_TT, _FORBIDDEN)
        emissions_BWT[:, 0] += start_T.masked_fill(self.forbidden_start_T, _FORBIDDEN)
        emissions_BWT += last_BW[..., None] * end_T

        best = [emissions_BWT[:, 0]]
        pointers = []
        for unary_BT in emissions_BWT.unbind(1)[1:]:
            values_BT, before_BT = (best[-1].unsqueeze(2) + transitions_TT).max(1)
            best.append(values_BT + unary_BT)
            pointers.append(before_BT)
        tags_B1 = _at(torch.stack(best), (lengths_B - 1).clamp(min=0)).argmax(1, keepdim=True)
        path = [tags_B1]
        for place in range(len(pointers) - 1, -1, -1):
            # beyond the end of a row its last tag is carried along
            tags_B1 = pointers[place].gather(1, tags_B1).where(valid_BW[:, place + 1, None], tags_B1)
            path.append(tags_B1)
        rows = torch.cat(path[::-1], dim=1).tolist()
        return [row[:length] for row, length in zip(rows, lengths_B.tolist(), strict=True)]

    @torch.no_grad()
    def log_partition(self, emissions_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Return log Σ exp s(y) of each row [B] over the sequences that keep to BIO, 0 where the mask is nowhere true.

        With emissions of -1e30 where a tag is ruled out, less that without them, it is the log-probability of what is
        left: of an entity, that its words have its tags and the next word does not go on with it.
        """
        self._check(emissions_BLT, mask_BL)
        order_BW, lengths_B = _chain(mask_BL)
        valid_BW, last_BW = _places(order_BW.shape[1], lengths_B)
        unary_BWT = _take(emissions_BLT, order_BW, valid_BW)
        start_T, transitions_TT, end_T = self._scores(unary_BWT.dtype)
        unary_BWT[:, 0] += start_T.masked_fill(self.forbidden_start_T, _FORBIDDEN)
        unary_BWT += last_BW[..., None] * end_T
        moves_BTT = transitions_TT.masked_fill(self.forbidden_TT, _FORBIDDEN).expand(len(mask_BL), -1, -1)
        sums_B: Tensor = _LogPartition.apply(
            unary_BWT.transpose(0, 1), moves_BTT, (lengths_B - 1).clamp(min=0)
        )
        return sums_B.where(lengths_B > 0, 0)

    def _scores(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.start.to(dtype), self.transitions.to(dtype), self.end.to(dtype)

    def _check(self, emissions_BLT: Tensor, mask_BL: Tensor) -> None:
        shape = tuple(emissions_BLT.shape)
        assert len(shape) == 3 and shape[2] == len(self.labels), f"emissions {shape}, {len(self.labels)} tags"
        assert emissions_BLT.is_floating_point(), f"emissions are {emissions_BLT.dtype}"
        assert mask_BL.dtype == torch.bool, f"the mask is {mask_BL.dtype}, not bool"
        assert mask_BL.shape == shape[:2] and mask_BL.numel(), (
            f"emissions {shape}, mask {tuple(mask_BL.shape)}"
        )


def _chain(mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row's true places are, in order, then other places [B, W], and how many they are [B].

    W is the largest number, or 1.
    """
    lengths_B = mask_BL.sum(1)
    words = max(int(lengths_B.max()), 1)
    return mask_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :words], lengths_B


def _places(words: int, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return which places belong to each row and which is its last one, both bool [B, W]."""
    places_W = torch.arange(words, device=lengths_B.device)
    return places_W < lengths_B[:, None], places_W == lengths_B[:, None] - 1


def _take(emissions_BLT: Tensor, order_BW: Tensor, valid_BW: Tensor) -> Tensor:
    """Return the emissions of the chain [B, W, T], float32 or float64, zeros beyond its end."""
    index_BWT = order_BW[..., None].expand(-1, -1, emissions_BLT.shape[2])
    taken_BWT = emissions_BLT.gather(1, index_BWT).to(torch.promote_types(emissions_BLT.dtype, torch.float32))
    return taken_BWT.where(valid_BW[..., None], 0)
