"""Failure signatures of the method, seen in the metrics of a run while it can still be stopped.

Each says what is wrong and what helps. One is said when it begins and again only after it has been away: a
warning in every line is read by nobody.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from promptmeup.models.heads import TEMPERATURE_RANGE
from promptmeup.prompts.quality import DOMINATED

Metrics = Mapping[str, float]

SMOOTHING = 0.9
"""of a metric's running mean: single batches have few labels"""
WARM = 10
"""lines before a running mean is believed"""


@dataclass(frozen=True)
class Signature:
    """A way to fail."""

    metric: str
    is_wrong: Callable[[float], bool]
    advice: str
    """with {value}"""


def _label_signatures(kind: str, losses: str) -> tuple[Signature, ...]:
    return (
        Signature(
            f"{kind}_label_top_share",
            lambda share: share > DOMINATED,
            f"one prompt is the most probable of {{value:.0%}} of the {kind} labels, so they say little about the "
            "photos: train the teacher for longer, lower the labels' temperature, or take that name out of the "
            "vocabulary",
        ),
        Signature(
            f"{kind}_label_kept",
            lambda share: share < 0.05,
            f"only {{value:.1%}} of the {kind} labels reach data.min_confidence, so {losses} trains on next to "
            "nothing: lower it, lower the labels' temperature, or train the teacher for longer",
        ),
    )


LOW, HIGH = TEMPERATURE_RANGE


def _at_clamp(value: float) -> bool:
    return value <= LOW * 1.001 or value >= HIGH * 0.999


SIGNATURES = (
    *_label_signatures("object", "object_entity"),
    *_label_signatures("relation", "image_relation"),
    *(
        Signature(
            name,
            _at_clamp,
            f"the {name.replace('_', ' ')} has reached an end of its range ({{value:.4g}}, of {LOW} to {HIGH}): at the "
            "low one the loss chases single pairs, at the high one it tells none apart; lower optim.lr, or look at "
            "the labels",
        )
        for name in ("temperature", "object_temperature", "relation_temperature")
    ),
    *(
        Signature(
            f"uniformity_{side}",
            lambda value: value > -0.5,
            f"the {side} vectors of the dev split lie close together (uniformity {{value:.2f}}, 0 is one point): "
            "the encoder has not spread them yet, or is collapsing; if it stays so, lower optim.lr or the temperature",
        )
        for side in ("image", "text")
    ),
)


class Watch:
    """Looks at the metrics of a run's lines; state is a running mean of each.

    Args:
        learns_temperature: a fixed temperature may be at an end of its range: it was put there.
    """

    def __init__(self, *, learns_temperature: bool = True) -> None:
        self._signatures = tuple(
            signature
            for signature in SIGNATURES
            if learns_temperature or not signature.metric.endswith("temperature")
        )
        self._means: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._said: set[str] = set()
        self._best_recall = 0.0

    def training(self, metrics: Metrics) -> list[str]:
        """Return what there is to say of a line of training metrics: running means are judged, after a while."""
        for name in {signature.metric for signature in self._signatures} & metrics.keys():
            before = self._means.get(name, metrics[name])
            self._means[name] = SMOOTHING * before + (1 - SMOOTHING) * metrics[name]
            self._seen[name] = self._seen.get(name, 0) + 1
        believed = {name: mean for name, mean in self._means.items() if self._seen[name] >= WARM}
        return self._judge(believed)

    def evaluation(self, metrics: Metrics) -> list[str]:
        """Return what there is to say of an evaluation, and of the loss that came before it."""
        found = self._judge(metrics)
        recall = metrics["mean_recall"]
        self._best_recall = max(self._best_recall, recall)
        falls = recall < 0.8 * self._best_recall
        text = (
            f"recall on the dev split is {recall:.3f}, its best was {self._best_recall:.3f}: the training loss "
            "falls and the model gets worse; RUN/best is the better one, and this run can be stopped"
        )
        return found + self._once("mean_recall", falls, text)

    def _judge(self, metrics: Metrics) -> list[str]:
        found = []
        for signature in self._signatures:
            if signature.metric in metrics:
                value = metrics[signature.metric]
                text = signature.advice.format(value=value)
                found += self._once(signature.metric, signature.is_wrong(value), text)
        return found

    def _once(self, name: str, is_wrong: bool, text: str) -> list[str]:
        was_said = name in self._said
        (self._said.add if is_wrong else self._said.discard)(name)
        return [text] if is_wrong and not was_said else []
