"""Arrays read element by element: the same values and the same messages as from json, in little memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptmeup.corpora import json_files
from promptmeup.corpora.json_files import read_array
from promptmeup.errors import CorpusError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=[1, 3, 7, 1 << 20])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", request.param)


def read(path: Path, key: str | None = None) -> list[Any]:
    return list(read_array(path, what="a list", missing="?", key=key))


@pytest.mark.usefixtures("_chunk")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=6), ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_any_array_in_any_chunks(
    tmp_path: Path, values: list[Any], ascii_only: bool, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, ensure_ascii=ascii_only, indent=indent), encoding="utf-8", newline="")
    assert read(path) == values
    around = {"before": {"annotations": 1}, "annotations": values, "after": [1, "x"]}
    path.write_text(json.dumps(around, ensure_ascii=ascii_only, indent=indent), encoding="utf-8", newline="")
    assert read(path, "annotations") == values


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1},\n {"id": 2',
        "[1, 2,\n\n tru]",
        '["a", "b\n"]',
        "[1 2]",
        "[1,\n2]\nx",
        "[",
        '["é",\n {"a" 1}]',
    ],
)
def test_mistakes_are_where_json_finds_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(CorpusError) as caught:
        read(path)
    assert f"at line {expected.value.lineno}, column {expected.value.colno} " in str(caught.value)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize(
    "text", ['{"a": 1 "annotations": []}', '{"annotations": [],}', '{"annotations" []}', "{"]
)
def test_objects_are_as_strict_as_arrays(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorpusError, match=r"is not valid JSON at line 1, column"):
        read(tmp_path / "a.json", "annotations")


@pytest.mark.usefixtures("_chunk")
def test_bytes_that_are_no_utf8_are_named_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["' + "é".encode() * 20 + b'\xff"]')
    with pytest.raises(CorpusError, match="not UTF-8 text at byte 42"):
        read(tmp_path / "a.json")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    record = json.dumps({"id": 1, "caption": "x" * 400, "image_path": "./a/b.jpg"})
    (tmp_path / "a.json").write_text("[" + ",".join([record] * 50_000) + "]")
    assert (tmp_path / "a.json").stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in read_array(tmp_path / "a.json", what="", missing="")) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
