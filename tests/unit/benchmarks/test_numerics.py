"""bench-numerics: the engine's curve is that of a plain loop, and another training's is not."""

from unittest import mock

import pytest

from promptmeup.distributed.world import World
from tests.benchmarks import numerics
from tests.support.ranks import run_ranks


def _curves(world: World) -> tuple[list[float], list[float], list[float]]:
    with mock.patch.multiple(numerics, STEPS=3, ROWS=4, BATCHES=2):
        plain, ours = numerics.plain_curve(), numerics.curve(world, precision="fp32", stage=1)
        with mock.patch.object(numerics, "rate_scale", return_value=0.0):
            return plain, ours, numerics.plain_curve()


def test_curves_of_the_same_training() -> None:
    ((plain, ours, untrained),) = run_ranks(_curves, 1, timeout=200)
    assert len(plain) == 3
    assert ours == pytest.approx(plain, rel=1e-6)
    assert untrained[2] == untrained[0] == plain[0]
    assert plain[2] < plain[0] - 0.1
