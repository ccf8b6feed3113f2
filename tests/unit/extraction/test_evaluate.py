"""Evaluating a fine-tuned model: the report, labels that it does not know, and which settings count."""

import json
from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import load
from promptmeup.errors import ConfigError, UserError
from promptmeup.extraction.evaluate import EvaluateConfig, evaluate
from promptmeup.extraction.predict import Extractor, Query
from promptmeup.extraction.predictions import Entity, EntityPrediction, RelationPrediction, read_predictions
from promptmeup.extraction.report import summary_row
from promptmeup.training import evaluate as retrieval

WORDS = [f"Ada{k} Byron saw New York with Eve {'and ' * k}there".split() for k in range(6)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Return the root of JSON lines for both tasks, with photos for some sentences and labels that no model knows."""
    root = tmp_path_factory.mktemp("corpus")
    for name in ("red.jpg", "noise.png"):
        (root / name).write_bytes((photos / name).read_bytes())
    tags = [["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "B-EVENT"] + ["O"] * (k + 1) for k in range(6)]
    common = [
        {"id": f"{k}", "words": words, "image": ["red.jpg", "absent.jpg", None][k % 3]}
        for k, words in enumerate(WORDS)
    ]
    write(root / "entities.jsonl", [row | {"tags": own} for row, own in zip(common, tags, strict=True)])
    spans = {"head": [0, 2], "tail": [3, 5]}
    relations = ["met", "None", "married_to"] * 2
    write(
        root / "relations.jsonl",
        [row | spans | {"relation": own} for row, own in zip(common, relations, strict=True)],
    )
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def config(model: Path, corpus: Path, task: str, *more: str) -> EvaluateConfig:
    data = [
        "data.kind=jsonl",
        f"data.task={task}",
        f"data.root={corpus}",
        f"data.files={{val: {task}.jsonl}}",
    ]
    return load(EvaluateConfig, None, [f"model={model}", "split=val", *data, *more])


def test_entities(
    tiny: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report's predictions are those of the Extractor on the same words and photos."""
    out, copy = tmp_path / "out", tmp_path / "new" / "copy.json"
    evaluate(config(tiny["entities"], corpus, "entities", f"out={out}", f"json_file={copy}"))
    result = json.loads((out / "result-val.json").read_text())
    assert result == json.loads(copy.read_text())
    assert result["unknown_labels"] == {"EVENT": 6}
    assert result["scores"]["types"]["EVENT"] == {"precision": 0, "recall": 0, "f1": 0, "support": 6}
    assert result["images"] == {
        "used": True,
        "sentences_with_image": 2,
        "missing_files": 1,
        "sentences_without_image": 4,
        "unreadable": 0,
    }
    written = read_predictions(out / "predictions-val.jsonl")
    images = [corpus / "red.jpg", None, None] * 2
    found = Extractor.load(tiny["entities"]).entities_batch(
        [Query(words, image) for words, image in zip(WORDS, images, strict=True)], batch=4
    )
    assert any(found)
    for line, own in zip(written, found, strict=True):
        assert isinstance(line, EntityPrediction)
        assert line.words == own.words and line.has_image == own.has_image
        expected = [Entity(*e.words, e.type, pytest.approx(e.score, abs=2e-6)) for e in own]
        assert list(line.entities) == expected
    shown = capsys.readouterr()
    assert "labels that the model does not know, which it can only miss: EVENT (6)" in shown.out
    assert f"wrote predictions-val.jsonl, result-val.json, f1-val.png in {out}" in shown.out
    assert "evaluate val: 6 of 6 sentences" in shown.err


def test_relations(
    tiny: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(config(tiny["relations"], corpus, "relations", f"out={tmp_path}", "batch=4"))
    assert "which it can only miss: married_to (2)" in capsys.readouterr().out
    written = read_predictions(tmp_path / "predictions-val.jsonl")
    images = [corpus / "red.jpg", None, None] * 2
    found = Extractor.load(tiny["relations"]).relations_batch(
        [Query(words, image, (0, 2), (3, 5)) for words, image in zip(WORDS, images, strict=True)], batch=5
    )
    for line, own in zip(written, found, strict=True):
        assert isinstance(line, RelationPrediction)
        assert (line.relation, line.has_image) == (own.relation, own.has_image)
        assert line.score == pytest.approx(own.probability, abs=2e-6)


def test_the_report_lies_beside_the_model(tiny: dict[str, Path], corpus: Path) -> None:
    evaluate(config(tiny["text"].parent, corpus, "entities"))
    folder = tiny["text"].parent / f"evaluation-{corpus.name}-val"
    assert sorted(path.name for path in folder.iterdir()) == [
        "f1-val.png",
        "predictions-val.jsonl",
        "result-val.json",
    ]
    result = json.loads((folder / "result-val.json").read_text())
    assert summary_row([result])["without photo"] == 6


def test_retrieval_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(retrieval, "evaluate", asked.append)
    evaluate(load(EvaluateConfig, None, ["model=RUN/best", "split=packed/val", "max_tokens=32"]))
    (got,) = asked
    assert (got.split, got.max_tokens, got.eval_mode) == ("packed/val", 32, None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["max_tokens=32", "eval_mode=whole"],
            "leave max_tokens, eval_mode out: with data, the model's own settings count",
        ),
        (["data.max_crops=2"], "leave max_crops out: the model's own settings count"),
        (["data=null", "out=there"], "out is for fine-tuned models, with data"),
        (["data.splits=[val]"], "unknown key 'data.splits'"),
    ],
)
def test_settings_that_do_not_count(more: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(Path("RUN"), Path("DIR"), "entities", *more)
    assert message in str(caught.value)


def test_mistakes(tiny: dict[str, Path], corpus: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds a fine-tuned model: name the corpus too, such as data.kind=twitter"
    ):
        evaluate(load(EvaluateConfig, None, [f"model={tiny['text']}", "split=val"]))
    with pytest.raises(ConfigError, match=r"finds entities, and .* is labelled for relations"):
        evaluate(config(tiny["text"], corpus, "relations"))
    with pytest.raises(UserError, match="holds no fine-tuned model"):
        evaluate(config(corpus, corpus, "relations"))
    with pytest.raises(UserError, match=r"there is no split 'test': data.files names val"):
        evaluate(config(tiny["text"], corpus, "entities", "split=test"))
