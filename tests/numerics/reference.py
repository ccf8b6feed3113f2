"""Slow NumPy float64 versions of the losses: one number at a time, straight from the formulas."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def logsumexp(values: list[float]) -> float:
    largest = max(values)
    return float(largest + np.log(sum(np.exp(v - largest) for v in values)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def one_direction(
    x: Array, y: Array, x_ids: list[int], y_ids: list[int], temperature: float, same_image: str
) -> float:
    """Mean over the rows that have a positive; row i and column i are partners."""
    losses = []
    for i in range(len(x)):
        matches = [j for j in range(len(y)) if x_ids[i] == y_ids[j]]
        positives = matches if same_image == "positive" else [j for j in matches if j == i]
        left_out = [j for j in matches if j != i] if same_image == "mask" else []
        s = {j: float(x[i] @ y[j]) / temperature for j in range(len(y)) if j not in left_out}
        if positives:
            losses.append(logsumexp(list(s.values())) - mean([s[j] for j in positives]))
    return mean(losses)


def image_text(
    image: Array, text: Array, image_ids: list[int], caption_ids: list[int], temperature: float, same: str
) -> float:
    forth = one_direction(image, text, image_ids, caption_ids, temperature, same)
    back = one_direction(text, image, caption_ids, image_ids, temperature, same)
    return (forth + back) / 2


def whole_label(ids: list[int], probs: list[float], num_prompts: int) -> Array:
    q = np.full(num_prompts, (1 - sum(probs)) / max(num_prompts - len(ids), 1))
    for k, p in zip(ids, probs, strict=True):
        q[k] = p
    return q / q.sum()


def soft_cross_entropy(logits: Array, q: Array, keep: list[bool]) -> float:
    """Sum over the rows that are kept."""
    return sum(
        -sum(q[i, k] * (logits[i, k] - logsumexp(list(logits[i]))) for k in range(logits.shape[1]))
        for i in range(len(logits))
        if keep[i]
    )


def soft_label_contrast(x: Array, bank: Array, q: Array, keep: list[bool], temperature: float) -> float:
    """Mean of the row direction and the column direction; columns as defined, with targets q_ik / m_k."""
    rows = [i for i in range(len(x)) if keep[i]]
    if not rows:
        return 0.0
    s = x @ bank.T / temperature
    row = mean([-sum(q[i, k] * (s[i, k] - logsumexp(list(s[i]))) for k in range(len(bank))) for i in rows])
    column = total_mass = 0.0
    for k in range(len(bank)):
        mass = sum(q[i, k] for i in rows)
        if mass > 0:
            normaliser = logsumexp([s[i, k] for i in rows])
            column += mass * -sum(q[i, k] / mass * (s[i, k] - normaliser) for i in rows)
            total_mass += mass
    return (row + float(column / total_mass)) / 2


def matching(logits: Array, matched: list[bool]) -> float:
    return mean([logsumexp(list(row)) - float(row[int(m)]) for row, m in zip(logits, matched, strict=True)])


def gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences; error about step², so 1e-8 relative for curvatures near 1."""
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        result[index] = (function(above) - function(below)) / (2 * step)
    return result
