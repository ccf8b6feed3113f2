"""How good soft labels look without any truth: entropy, confidence, dominance, agreement with the captions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOMINATED = 0.5
"""share of one prompt among the arg-maxes above which the labels say little about the images"""
FEW_ROWS = 20
"""below so many labels a large share is chance"""


def entropies(labels_N: NDArray[Any], *, num_prompts: int) -> NDArray[np.float64]:
    """Return each label's entropy [N] in nats; mass that is not stored is uniform on the other prompts."""
    probs_NT = labels_N["probs"].astype(np.float64)
    others = num_prompts - probs_NT.shape[1]
    rest_N = np.clip(1 - probs_NT.sum(axis=1), 0, 1)
    if others == 0:  # the rest is rounding alone
        probs_NT = probs_NT / probs_NT.sum(axis=1, keepdims=True)
        rest_N = np.zeros(len(probs_NT))
    kept_N = -np.sum(probs_NT * np.log(np.where(probs_NT > 0, probs_NT, 1)), axis=1)
    each_N = rest_N / max(others, 1)
    result: NDArray[np.float64] = kept_N - rest_N * np.log(np.where(each_N > 0, each_N, 1))
    return result


def statistics(
    arrays: Iterable[NDArray[Any]], *, num_prompts: int, min_confidence: float = 0.2
) -> dict[str, float]:
    """Summarise the label arrays of any number of shards.

    Returns:
        rows: number of labels
        entropy: mean, in nats; log(num_prompts) when the teacher knows nothing
        share_confident: share whose largest PROBABILITY reaches `min_confidence`
        top_share: share of the prompt that is most often the most probable one
        top_prompt: that prompt's position in the bank; -1 without any label
    """
    rows, entropy, confident = 0, 0.0, 0
    votes_K = np.zeros(num_prompts, dtype=np.int64)
    for labels_N in arrays:
        rows += len(labels_N)
        entropy += float(entropies(labels_N, num_prompts=num_prompts).sum())
        confident += int(np.count_nonzero(labels_N["probs"][:, 0] >= min_confidence))
        votes_K += np.bincount(labels_N["ids"][:, 0], minlength=num_prompts)
    return {
        "rows": float(rows),
        "entropy": entropy / max(rows, 1),
        "share_confident": confident / max(rows, 1),
        "top_share": float(votes_K.max()) / max(rows, 1),
        "top_prompt": float(votes_K.argmax()) if rows else -1.0,
    }


def dominance_warning(found: dict[str, float], names: Sequence[str], *, kind: str) -> str | None:
    """Return a line for the user when one prompt wins most labels, else None; `found` is of `statistics`."""
    if found["rows"] < FEW_ROWS or found["top_share"] <= DOMINATED:
        return None
    return (
        f"{found['top_share']:.0%} of the {found['rows']:.0f} labels of {kind} name the same prompt, "
        f"'{names[int(found['top_prompt'])]}': they say little about the images. "
        "Train the teacher for longer, lower the temperature or take that name out of the vocabulary"
    )


AGREEMENT_AT = (1, 5)


def agreement(
    ids_NT: NDArray[Any], *, samples_N: NDArray[np.int64], named_SK: NDArray[np.bool_]
) -> dict[str, float]:
    """Return how often a label's most probable prompts are named in the photo's own captions: a free measure.

    By chance means: with the captions of other photos, on average over eight of them. It knows which names are
    frequent, so a teacher that always says the most frequent one is at chance.

    Args:
        ids_NT: prompts of each label, the most probable first.
        samples_N: the photo of each label.
        named_SK: which prompts the captions of each photo name; labels of photos with none are left out.

    Returns:
        agreement_rows, and for k = 1 and 5 agreement_top{k} and agreement_top{k}_by_chance, each in [0, 1].
    """
    counted_N = named_SK[samples_N].any(axis=1)
    ids_NT, samples_N = ids_NT[counted_N], samples_N[counted_N]
    with_names = np.flatnonzero(named_SK.any(axis=1))
    found = {"agreement_rows": float(len(samples_N))}
    if len(samples_N) == 0 or len(with_names) < 2:
        return found
    places_N = np.searchsorted(with_names, samples_N)
    shifts = [1 + (len(with_names) - 1) * step // 8 for step in range(8)]

    def hits(photos_N: NDArray[np.int64], k: int) -> float:
        return float(named_SK[photos_N[:, None], ids_NT[:, :k]].any(axis=1).mean())

    for k in AGREEMENT_AT:
        others = [hits(with_names[(places_N + shift) % len(with_names)], k) for shift in shifts]
        found[f"agreement_top{k}"] = hits(samples_N, k)
        found[f"agreement_top{k}_by_chance"] = float(np.mean(others))
    return found
