"""docs/release.md names tests: they are there."""

import re

import pytest

from tests.support.real_data import ROOT

NAMED = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "docs/release.md").read_text(encoding="utf-8"))


def test_every_mistake_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs/release.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 20
    assert all("::test_" in row for row in rows)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_named_tests_exist(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
