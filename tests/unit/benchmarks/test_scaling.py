"""The arithmetic of `make bench-scaling`; its calls are made on real ranks in tests/distributed."""

import pytest

from promptmeup.distributed.scaling import Collective
from tests.benchmarks import scaling


def test_links_and_what_the_model_says() -> None:
    size = (scaling.LARGE - scaling.SMALL) / 1e6
    links = {
        "all-reduce": scaling.link_of("all-reduce", 0.5, 0.5 + size, ranks=4),
        "all-to-all": scaling.link_of("all-to-all", 0.25, 0.25 + size, ranks=4),
    }
    assert links["all-reduce"].bandwidth == pytest.approx(1.5e6)
    assert links["all-to-all"].bandwidth == pytest.approx(0.75e6)
    collectives = [
        Collective("gradients", "all-reduce", 2_000_000, calls=2),
        Collective("captions' gradients", "reduce-scatter", 1_000_000),
    ]
    found = scaling.modelled_seconds(collectives, links, ranks=4)
    assert found == pytest.approx(2 * 0.5 + 2 + 0.25 + 1)


def test_rows_and_summary() -> None:
    seconds = {("weak", 1): [1.0] * 3, ("weak", 4): [2.0] * 3, ("strong", 1): [4.0], ("strong", 4): [2.0]}
    cpu = {("weak", 1): [1.0], ("weak", 4): [1.25], ("strong", 1): [4.0], ("strong", 4): [1.25]}
    rows, summary = scaling.scaling_rows(seconds, cpu, cores=2)
    assert summary == {"weak_4": 0.5, "weak_cpu_4": 0.8, "strong_4": 0.5, "strong_cpu_4": 0.8}
    assert [row["cores"] for row in rows] == ["one a rank", "oversubscribed"] * 2
    assert rows[1]["pairs/s"] == 2 * scaling.ROWS
    more, of_model = scaling.model_rows({(4, 1): [(1.0, 1.0)], (2, 1): [(1.0, 2.0), (3.0, 3.0), (9.0, 3.0)]})
    assert of_model == {"model_vs_measured": 1.0}
    assert [row["ranks"] for row in more] == [2, 4]
