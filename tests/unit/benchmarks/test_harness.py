import json
from pathlib import Path

import pytest

from tests.benchmarks import harness


def test_competitors_take_turns_and_warmups_do_not_count() -> None:
    now = 0.0
    calls: list[str] = []

    def work(name: str, seconds: float) -> None:
        nonlocal now
        calls.append(name)
        now += seconds

    functions = {name: lambda n=name, s=s: work(n, s) for name, s in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    seconds = harness.interleave(functions, repeats=3, warmups=1, clock=lambda: now)
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert "".join(calls) == "abcbcacababc"


def test_spread_is_not_moved_by_one_slow_run() -> None:
    assert harness.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == harness.Spread(3.0, 2.0, 4.0, 1.0)


def measured() -> tuple[list[dict[str, object]], dict[str, float]]:
    return [{"side": "ours", "rate": 2.0}, {"side": "theirs", "rate": 1.0}], {"ours_vs_theirs": 2.0}


def test_result_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "result.json"
    harness.run("loader", measured, argv=["--json", str(path)])
    result = json.loads(path.read_text())
    assert (result["rows"], result["summary"]) == measured()
    assert result["environment"]["packages"]["torch"]
    assert result["environment"]["threads"] >= 1
    out = capsys.readouterr().out
    assert "ours    " in out
    assert "ours_vs_theirs      2" in out


def test_without_json_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    harness.run("loader", measured, argv=[])
    assert list(tmp_path.iterdir()) == []
