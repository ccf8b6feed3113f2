"""Wrong names: the same ones at every higher rate, and a vocabulary that can still be read."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from promptmeup.errors import ConfigError
from promptmeup.prompts.vocabulary import read_entities
from promptmeup.study.entity_errors import EntityErrorsConfig, make_entity_errors

WORDS = ("Ada", "bell", "Cole", "dam", "Eve", "Foster", "Ärger", "hat", "Ida", "jar", "Kim", "lid")
# of different first and last words: there is a new combination for every name
NAMES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
    min_size=4,
    max_size=9,
    unique_by=(lambda name: name.split()[0], lambda name: name.split()[-1]),
)
rates = st.floats(0, 1)
Row = tuple[str, str, str]


def made(folder: Path, names: list[str], **settings: Any) -> list[Row]:
    text = "".join(f"{n}\t{30 - k}\t{('entity', 'noun')[k % 2]}\n" for k, n in enumerate(names))
    (folder / "entities.tsv").write_text(text, encoding="utf-8")
    out = folder / "wrong.tsv"
    make_entity_errors(EntityErrorsConfig(source=folder / "entities.tsv", out=out, **settings))
    rows = [tuple(line.split("\t")) for line in out.read_text(encoding="utf-8").splitlines()]
    assert read_entities(out, size=99) == tuple(row[0] for row in rows)
    return rows  # type: ignore[return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@settings(max_examples=80, deadline=None)
@given(
    names=NAMES, low=rates, high=rates, how=st.sampled_from(["swapped", "nonsense"]), seed=st.integers(0, 3)
)
def test_replaced_names_stay_replaced_as_the_rate_grows(
    folder: Path, names: list[str], low: float, high: float, how: str, seed: int
) -> None:
    low, high = sorted((low, high))
    at_low = made(folder, names, how=how, rate=low, seed=seed)
    at_high = made(folder, names, how=how, rate=high, seed=seed)
    known = {name.casefold() for name in names}
    for place, name in enumerate(names):
        counted = (str(30 - place), ("entity", "noun")[place % 2])
        assert at_low[place][1:] == at_high[place][1:] == counted
        if at_low[place][0] != name:
            assert at_high[place] == at_low[place]
        if (new := at_high[place][0]) != name:
            assert new.casefold() not in known
            if how == "swapped":
                first, last = new.split()
                assert first == name.split()[0] and last in {
                    other.split()[-1] for other in names if other != name
                }
            else:
                assert [word.istitle() for word in new.split()] == [word.istitle() for word in name.split()]
    assert at_low == made(folder, names, how=how, rate=low, seed=seed)


@settings(max_examples=40, deadline=None)
@given(names=NAMES, low=st.floats(0, 0.4), high=st.floats(0, 0.4), seed=st.integers(0, 3))
def test_dropped_names_stay_dropped_as_the_rate_grows(
    folder: Path, names: list[str], low: float, high: float, seed: int
) -> None:
    low, high = sorted((low, high))
    try:
        at_low, at_high = (made(folder, names, how="dropped", rate=rate, seed=seed) for rate in (low, high))
    except ConfigError:  # fewer than two are left
        reject()
    assert set(at_high) <= set(at_low) <= set(made(folder, names, rate=0))


@pytest.mark.parametrize("how", ["dropped", "swapped", "nonsense"])
def test_a_rate_of_0_changes_nothing_and_0_3_three_in_ten(tmp_path: Path, how: str) -> None:
    names = [f"Anna{n} Berg{n}" for n in range(28)]
    source = made(tmp_path, names, how=how, rate=0)
    assert [row[0] for row in source] == names
    wrong = [
        len(set(source) - set(made(tmp_path, names, how=how, rate=0.3, seed=seed))) for seed in range(40)
    ]
    assert sum(wrong) / (40 * len(names)) == pytest.approx(0.3, abs=0.04)
    assert made(tmp_path, names, how=how, rate=0.3, seed=1) != made(tmp_path, names, how=how, rate=0.3)


def test_refusals(tmp_path: Path) -> None:
    names = ["Ada Bell", "Cole", "dam"]
    with pytest.raises(ConfigError, match=r"rate=1\.0 leaves 0 of 3 names, .* at least 2 .*: lower rate"):
        made(tmp_path, names, rate=1)
    with pytest.raises(
        ConfigError, match=r"first word of 'b.*' makes a new name with the last word of no other"
    ):
        made(tmp_path, ["b", "b b", "b a", "c b", "c a", "a"], how="swapped", rate=1)
    with pytest.raises(ConfigError, match="name 'ADA' is in line 1 already"):
        made(tmp_path, ["Ada", "ADA"], rate=0)
    with pytest.raises(ConfigError, match="1 of 1 names left"):
        made(tmp_path, ["Ada"], rate=0)
    with pytest.raises(ConfigError, match="cannot read"):
        make_entity_errors(EntityErrorsConfig(source=tmp_path / "none.tsv", out=tmp_path / "out.tsv"))
