"""The command: its flags, its files, what it prints and what it says of mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptmeup.errors import ConfigError, CorpusError, InputError, UserError
from promptmeup.extraction.predict import (
    Entities,
    Extractor,
    FoundEntity,
    FoundRelation,
    FoundSpan,
    Query,
    SeenSentence,
)
from promptmeup.extraction.predict_command import as_table, merged, parse, read_lines, run

LINES: list[dict[str, Any]] = [
    {"id": "1", "text": "Grace Hopper flew to New York", "image": "red.jpg", "user": {"n": 1}},
    {"id": "2", "words": ["Ada", "met", "Grace Hopper"], "image": None, "tags": ["O", "O", "O"]},
    {"id": "3", "text": "", "image": "absent.jpg"},
    {"id": "1", "text": "über\u2028Ada", "image": "damaged.jpg", "entities": ["given"]},
]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def read_output(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def predict_lines(model: Path, source: Path, output: Path, *more: str) -> None:
    run(parse(["--model", str(model), "--input", str(source), "--output", str(output), *more]))


def test_a_file_of_sentences(
    tiny: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(photos / "in.jsonl", LINES)
    output = tmp_path / "new" / "out.jsonl"
    predict_lines(tiny["entities"], source, output, "--batch", "3")
    made = read_output(output)
    extractor = Extractor.load(tiny["entities"])
    first = extractor.entities("Grace Hopper flew to New York", image=photos / "red.jpg")
    assert made[0].items() >= LINES[0].items()
    assert [e["text"] for e in made[0]["entities"]] == [e.text for e in first]
    assert [e["score"] for e in made[0]["entities"]] == pytest.approx([e.score for e in first], abs=1e-5)
    assert made[0]["words"] == ["Grace", "Hopper", "flew", "to", "New", "York"]
    assert made[1]["text"] == "Ada met Grace Hopper"
    assert [line["has_image"] for line in made] == [True, False, False, False]
    assert [line["cut_words"] for line in made] == [0, 0, 0, 0]
    assert made[1]["image_error"] is None
    assert made[2]["image_error"] == f"there is no file {photos}/absent.jpg"
    assert made[2]["entities"] == []
    assert made[3]["image_error"] == f"{photos}/damaged.jpg is no image, or a damaged one"
    assert made[3]["given"] == {"entities": ["given"]}
    assert all("given" not in line for line in made[:3])
    for line in made:
        for entity in line["entities"]:
            assert line["text"][entity["start"] : entity["end"]] == entity["text"]
    shown = capsys.readouterr()
    assert not shown.out
    assert "predict: 4 of 4 sentences" in shown.err and "unreadable_images 2" in shown.err
    assert "out.jsonl: 4 sentences, 1 with their photo\n2 photos were not seen" in shown.err
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_half_an_emoji_is_carried_along(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Tweets that were cut have such; it has no UTF-8."""
    lines = [{"id": "1", "text": "Bo", "note": "cut \ud83d"}, {"id": "\udc00", "text": "über"}]
    predict_lines(tiny["text"], write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    made = read_output(tmp_path / "out.jsonl")
    assert [line.items() >= given.items() for line, given in zip(made, lines, strict=True)] == [True, True]


def test_a_file_of_relations(tiny: dict[str, Path], tmp_path: Path) -> None:
    lines = [
        {"id": 7, "text": "Ada met Grace Hopper", "head": "Ada", "tail": "Grace Hopper", "relation": "gold"},
        {"text": "Ada met Ada", "head": "0:3", "tail": [8, 11]},
        {"words": ["Ada", "met", "Ada"], "head": [0, 1], "tail": [2, 3]},
    ]
    output = tmp_path / "out.jsonl"
    predict_lines(tiny["relations"], write_lines(tmp_path / "in.jsonl", lines), output)
    made = read_output(output)
    assert made[0]["given"] == {"relation": "gold"} and made[0]["head"] == "Ada"
    assert made[0]["tail_span"] == {"start": 8, "end": 20, "text": "Grace Hopper", "words": [2, 4]}
    assert made[1]["tail_span"]["start"] == 8
    for line in made:
        assert line["score"] == line["probabilities"][line["relation"]] == max(line["probabilities"].values())
    for name in ("relation", "probabilities", "head_span", "tail_span"):
        assert made[1][name] == made[2][name]


def test_a_file_with_damaged_lines(tmp_path: Path) -> None:
    """All mistakes are said at once, before a model is loaded."""
    good = json.dumps({"text": "Ada"})
    bad = ["{", "[1]", "{}", '{"text": 1}', '{"text": "a", "words": ["a"]}', '{"words": ["a", ""]}']
    bad += ['{"text": "a", "image": 3}', '{"text": "a", "head": {}}', '{"text": "a", "boxes": [1]}']
    (tmp_path / "in.jsonl").write_text("\n".join([good, *bad, good]))
    with pytest.raises(InputError) as caught:
        predict_lines(tmp_path / "no_model", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    said = str(caught.value).splitlines()
    assert said[0].endswith("in.jsonl: 9 lines cannot be used, so nothing was predicted:")
    assert said[1:3] == ["  line 2: expected a JSON object", "  line 3: expected a JSON object"]
    assert said[3] == '  line 4: expected either "text" or "words"; its keys are none'
    assert said[4] == '  line 5: "text" must be text; this is 1'
    assert said[-1] == "  and 4 more"
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"words": ["a", ""]}, '"words" must be a list of words, none of them empty'),
        ({"words": []}, '"words" must be a list of words'),
        ({"text": "a", "image": 3}, '"image" must be a path, or null; this is 3'),
        ({"text": "a", "head": [1, 2, 3]}, '"head" must be text, "START:END" or [start, end]'),
        ({"text": "a", "boxes": [{"x0": 1}]}, '"boxes" must be a list of objects'),
        ({"text": "a", "crops": ["a.jpg", ""]}, '"crops" must be a list of paths'),
        ({"text": "\ud800"}, '"text" must be text'),
        ({"id": "a"}, 'expected either "text" or "words"; its keys are id'),
    ],
)
def test_a_damaged_line(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_lines(write_lines(tmp_path / "in.jsonl", [line]))
    assert f"1 line cannot be used, so nothing was predicted:\n  line 1: {message}" in str(caught.value)


def test_mentions_are_looked_for_before_anything_is_predicted(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"text": "Ada met Eve", "head": "Ada", "tail": "Eve"},
        {"text": "Ada met Eve", "head": "Ada"},
        {"text": "Ada met Eve", "head": "Ada", "tail": "Adam"},
    ]
    monkeypatch.setattr(Extractor, "relations_batch", None)
    with pytest.raises(InputError) as caught:
        predict_lines(tiny["relations"], write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl")
    assert "2 lines cannot be used" in str(caught.value)
    assert "line 2: a relation has a head and a tail, and no tail was given" in str(caught.value)
    assert "line 3: tail 'Adam' does not occur in 'Ada met Eve'" in str(caught.value)


def test_a_stopped_run_leaves_what_was_done(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": f"Ada {k}"} for k in range(5)])
    output = tmp_path / "out.jsonl"
    output.write_text("older\n")
    real, calls = Extractor.entities_batch, []

    def stopped(self: Extractor, queries: list[Query], *, batch: int) -> list[Entities]:
        calls.append(len(queries))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, queries, batch=batch)

    monkeypatch.setattr(Extractor, "entities_batch", stopped)
    with pytest.raises(SystemExit) as caught:
        predict_lines(tiny["text"], source, output, "--batch", "2")
    assert caught.value.code == 130
    assert calls == [2, 2, 1]
    assert output.read_text() == "older\n"
    assert [line["text"] for line in read_output(tmp_path / "out.jsonl.partial")] == [
        f"Ada {k}" for k in range(4)
    ]
    assert f"the lines that were done are in {output}.partial" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl/out.jsonl"])
def test_where_nothing_can_be_written(tiny: dict[str, Path], tmp_path: Path, name: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "Ada"}])
    with pytest.raises(
        ConfigError, match=r"is the input; write to another file|cannot write .*: .* directory|exists"
    ):
        predict_lines(tiny["text"], source, tmp_path / name)
    assert source.read_text() == '{"text": "Ada"}\n'


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"in.jsonl is missing: --input names it"):
        predict_lines(tmp_path, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "a", "--input", "b", "--output", "c"], "--input brings all sentences: leave --text out"),
        (["--json", "--input", "b", "--output", "c"], "--input brings all sentences: leave --json out"),
        (["--input", "b"], "--input and --output go together"),
        (["--text", "a", "--output", "b"], "--input and --output go together"),
        ([], "give --text TEXT, or --input FILE with --output FILE"),
        (["--text", "a", "--head", "b"], "--head and --tail go together"),
        (["--text", "a", "--batch", "0"], "--batch is 0, it must be at least 1"),
    ],
)
def test_mistakes_in_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--model", "m", *flags])
    assert caught.value.code == 2
    assert f"predict.py: error: {message}" in capsys.readouterr().err


def test_flags_of_the_other_task(tiny: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="finds relations: give --head and --tail"):
        run(parse(["--model", str(tiny["relations"]), "--text", "Ada"]))
    with pytest.raises(UserError, match="finds entities: leave --head and --tail out"):
        run(parse(["--model", str(tiny["text"]), "--text", "Ada", "--head", "Ada", "--tail", "Ada"]))


def test_one_sentence(tiny: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(tiny["relations"]), "--text", "Ada met Eve", "--head", "Ada", "--tail", "Eve"]
    run(parse([*flags, "--image", str(photos / "red.jpg"), "--json"]))
    found = json.loads(capsys.readouterr().out)
    assert found["has_image"] is True and found["head_span"]["text"] == "Ada"
    run(parse(flags))
    shown = capsys.readouterr().out
    assert "head  Ada      0:3" in shown and "the text alone was seen, no photo" in shown
    run(parse(["--model", str(tiny["text"]), "--text", "Ada met Eve", "--image", "a.jpg"]))
    assert capsys.readouterr().err.endswith("reads text only: photos are left alone\n")


def some_entities(found: list[FoundEntity], *, has_image: bool = False, cut_words: int = 0) -> Entities:
    about = SeenSentence(
        text="Ada met\nEve", words=("Ada", "met", "Eve"), has_image=has_image, cut_words=cut_words
    )
    return Entities(found, about)


def test_the_table_of_entities() -> None:
    entities = [
        FoundEntity(0, 3, "Ada", (0, 1), "PER", 1.0),
        FoundEntity(4, 11, "met\nEve", (1, 3), "EVENT", 0.0312),
    ]
    assert as_table(some_entities(entities, has_image=True)).splitlines() == [
        "entity   type   characters  score",
        "-------  -----  ----------  -------",
        "Ada      PER    0:3         100.0 %",
        "met Eve  EVENT  4:11          3.1 %",
        "",
        "seen with its photo",
    ]
    assert as_table(some_entities([], cut_words=1)).splitlines() == [
        "no entities found",
        "",
        "the text alone was seen, no photo",
        "1 of 3 words were cut off: the sentence is too long",
    ]


def test_the_table_of_a_relation() -> None:
    probabilities = {"lives in": 0.9, "met": 0.05, "a": 0.02, "b": 0.01, "c": 0.01, "d": 0.01}
    found = FoundRelation(
        text="Ada met Eve",
        words=("Ada", "met", "Eve"),
        has_image=True,
        relation="lives in",
        probability=0.9,
        probabilities=probabilities,
        head=FoundSpan(0, 3, "Ada", (0, 1)),
        tail=FoundSpan(8, 11, "Eve", (2, 3)),
    )
    assert as_table(found).splitlines() == [
        "of    mention  characters",
        "----  -------  ----------",
        "head  Ada      0:3",
        "tail  Eve      8:11",
        "",
        "relation  probability",
        "--------  -----------",
        "lives in   90.0 %",
        "met         5.0 %",
        "a           2.0 %",
        "b           1.0 %",
        "c           1.0 %",
        "and 1 less probable ones (all with --json)",
        "",
        "seen with its photo",
    ]


def test_what_the_input_says_is_kept() -> None:
    assert merged({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": 1, "b": 3, "c": 4, "given": {"b": 2}}
    assert merged({"a": 1, "b": 3}, {"b": 3}) == {"a": 1, "b": 3}
