"""The command that compares: its configuration, what it prints and what it writes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from promptmeup.config import load
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.extraction.bootstrap import Comparison, System
from promptmeup.extraction.compare import CompareConfig, compare, sentence
from promptmeup.extraction.predictions import write_predictions
from tests.unit.extraction.support import entities, relations

GOLD = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]] * 20
RESULT = Comparison(
    first=System(0.75, {"a": 0.74, "b": 0.76}),
    second=System(0.7375, {"c": 0.7375}),
    difference=0.0125,
    low=0.0011,
    high=0.0239,
    p=0.0347,
    sentences=300,
    lines=310,
    resamples=10_000,
    confidence=0.95,
)


def test_a_path_or_several() -> None:
    config = load(CompareConfig, None, ["first=[a.jsonl, b.jsonl]", "second=c.jsonl"])
    assert config.first == (Path("a.jsonl"), Path("b.jsonl"))
    assert config.second == (Path("c.jsonl"),)
    assert (config.none, config.resamples, config.confidence, config.seed) == ("None", 10_000, 0.95, 0)
    assert load(CompareConfig, None, ["first=a", "second=b", "none=null"]).none is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("first=[]", "'first' = []: no file is named"),
        ("first=[a, b, a]", "'first' = ['a', 'b', 'a']: a is named twice; name the file of each seed once"),
        ("first=3", "'first' = 3: input should be a valid array"),
        ("first=[3]", "'first.0' = 3: input should be a valid string"),
        ("resamples=9", "'resamples' = 9"),
        ("confidence=1", "'confidence' = 1"),
    ],
)
def test_mistakes_of_the_configuration(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(CompareConfig, None, ["first=a", "second=b", override])
    assert message in str(caught.value)


def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = [["O"] * len(tags) for tags in GOLD]
    half = [tags if number % 4 < 2 else nothing[number] for number, tags in enumerate(GOLD)]
    for name, found in (("a", GOLD), ("b", half), ("c", nothing)):
        write_predictions(tmp_path / name, entities(GOLD, found))
    places = [f"{tmp_path}/{name}" for name in "abc"]
    out = tmp_path / "new/folder/result.json"
    config = load(
        CompareConfig,
        None,
        [f"first=[{places[0]},{places[1]}]", f"second={places[2]}", "resamples=200", f"json_file={out}"],
    )
    compare(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["system", "files", "F1", "(%)", "lowest", "highest"]
    assert lines[2].split() == ["first", "2", "83.33", "66.67", "100.00"]
    assert lines[3].split() == ["second", "1", "0.00", "0.00", "0.00"]
    assert lines[4].startswith("first - second is +83.33 points of F1 over 40 sentences; the 95 % interval +")
    assert "excludes 0 (p = 0.01); second: one file" in lines[4]
    assert len(lines) == 5
    written = json.loads(out.read_text())
    assert written["first"]["files"] == {places[0]: 1.0, places[1]: pytest.approx(2 / 3)}
    assert written["difference"] == pytest.approx(5 / 6)
    assert (written["resamples"], written["seed"], written["none"]) == (200, 0, "None")
    assert written["excludes_zero"] is True


def test_the_sentence() -> None:
    assert sentence(RESULT) == (
        "first - second is +1.25 points of F1 over 300 sentences; the 95 % interval +0.11 to +2.39 excludes 0 "
        "(p = 0.035); second: one file, so the noise of seeds is not in it."
    )
    unsure = replace(RESULT, low=-0.001, p=0.2, second=System(0.7375, {"c": 0.73, "d": 0.745}))
    assert sentence(unsure) == (
        "first - second is +1.25 points of F1 over 300 sentences; the 95 % interval -0.10 to +2.39 includes 0: "
        "no difference is shown (p = 0.2)."
    )


def test_a_misspelt_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a"
    write_predictions(path, relations(["peer", "no_relation"], ["peer", "no_relation"]))
    config = CompareConfig(first=(path,), second=(path,), resamples=100)
    with pytest.raises(CorpusError) as caught:
        compare(config)
    assert f"{path}: none = 'None' is no gold relation; they are no_relation, peer." in str(caught.value)
    for none in ("no_relation", None):
        compare(config.model_copy(update={"none": none}))
        assert "first       1  100.00" in capsys.readouterr().out
