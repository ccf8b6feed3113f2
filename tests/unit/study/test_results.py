"""Scores are those of the predictions, and what is missing is listed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from promptmeup.errors import CorpusError, StudyError
from promptmeup.extraction.bootstrap import counts
from promptmeup.extraction.predictions import read_predictions
from promptmeup.study.findings import find
from promptmeup.study.results import Arm, Measure, Missing, read_scores, read_study
from tests.support.study_folder import SMALL, ceiling, write_study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), losses=False)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


def change(folder: Path, **changed: Any) -> None:
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_asked(made: Path) -> None:
    study = read_study(made)
    assert study.arms[3] == Arm("boxes swapped 0.5", "boxes-swapped-0-5", "boxes swapped", 0.5)
    assert (study.baseline, study.seeds, study.origin) == ("all losses", (1, 2, 3), 0.0)
    assert study.measures["relations"] == Measure("relations")


def test_scores_are_those_of_an_independent_count(made: Path) -> None:
    results = read_scores(made, read_study(made))
    assert len(results.scores) == 5 * 3 * 3
    assert results.missing == ()
    for arm in SMALL:
        for seed in (1, 2, 3):
            cell = made / "cells" / arm.slug / f"seed-{seed}"
            correct, predicted, gold = counts(read_predictions(cell / "entities.jsonl"), none=None).sum(
                axis=0
            )
            entities = results.scores[arm.name, seed, "entities"]
            assert entities.value == pytest.approx(100 * 2 * correct / (predicted + gold))

            asked = lines(cell / "relations.jsonl")
            right = [line["gold"] == line["relation"] for line in asked]
            relations = results.scores[arm.name, seed, "relations"]
            assert relations.value == pytest.approx(100 * sum(right) / len(right))
            peers = [[line[key] == "peer" for line in asked] for key in ("gold", "relation")]
            both = sum(a and b for a, b in zip(*peers, strict=True))
            assert relations.parts["peer"] == pytest.approx(100 * 2 * both / (sum(peers[0]) + sum(peers[1])))

            ranks = lines(cell / "retrieval.jsonl")
            recalls = []
            for way in ("image_to_text", "text_to_image"):
                own = [line["rank"] for line in ranks if line["direction"] == way]
                recalls += [100 * sum(rank in range(k) for rank in own) / len(own) for k in (1, 5, 10)]
            retrieval = results.scores[arm.name, seed, "retrieval"]
            assert retrieval.value == pytest.approx(sum(recalls) / 6)
            assert list(retrieval.parts.values()) == pytest.approx(recalls)


def test_entity_types_by_hand(made: Path) -> None:
    found = read_scores(made, read_study(made)).scores["all losses", 1, "entities"].parts
    asked = lines(made / "cells/all-losses/seed-1/entities.jsonl")
    gold, predicted, both = 0, 0, 0
    for line in asked:
        for start, end in ((0, 2), (3, 4)):
            tags = line["gold"][start:end], line["tags"][start:end]
            gold += tags[0][0] == "B-PER"
            predicted += tags[1][0] == "B-PER"
            both += tags[0][0] == tags[1][0] == "B-PER"
    assert sorted(found) == ["LOC", "MISC", "ORG", "PER"]
    assert found["PER"] == pytest.approx(100 * 2 * both / (gold + predicted))


def test_ceilings_in_percent_and_their_mean(made: Path) -> None:
    study = read_study(made)
    results = read_scores(made, study)
    best = ceiling(3)
    assert results.ceilings["all losses", 3, "entities"] == {
        "words": pytest.approx(100 * best["entities"]["words"]["F1"]),
        "kinds": pytest.approx(80),
        "image": pytest.approx(100),
    }
    found = find(study, results)
    assert found.ceiling("entities", "words") == pytest.approx(51.0)
    assert found.ceiling("relations", "image") == pytest.approx(99.0)
    assert found.ceiling("retrieval", "image") is None


def test_what_is_missing_is_listed_and_the_rest_is_scored(folder: Path) -> None:
    (folder / "cells/all-losses/seed-2/cell.json").unlink()
    (folder / "cells/without-matching/seed-3/relations.jsonl").unlink()
    shutil.rmtree(folder / "cells/boxes-swapped-1")
    study = read_study(folder)
    results = read_scores(folder, study)
    assert results.missing == (
        Missing("all losses", 2, "the cell is not finished"),
        Missing("without matching", 3, "relations.jsonl is not there"),
        *(Missing("boxes swapped 1", seed, "the cell is not finished") for seed in (1, 2, 3)),
    )
    assert len(results.finished) == 15 - 4
    found = find(study, results)
    assert found.effects["without matching", "relations"].n == 1
    assert found.effects["without matching", "entities"].n == 2
    assert ("boxes swapped 1", "entities") not in found.effects


def test_a_cell_of_other_settings_is_missing(folder: Path) -> None:
    study = json.loads((folder / "study.json").read_text())
    made = {"pretrain": "pretrain-all-losses-1"}
    study["stages"] = {"all-losses/seed-1": made, "all-losses/seed-2": {"pretrain": "pretrain-of-today"}}
    (folder / "study.json").write_text(json.dumps(study))
    results = read_scores(folder, read_study(folder))
    assert results.missing == (Missing("all losses", 2, "what is there was made with other settings"),)
    assert results.by_seed("all losses", "entities").keys() == {1, 3}


def test_retrieval_on_another_split_is_noticed(folder: Path) -> None:
    path = folder / "cells/without-matching/seed-2/retrieval.jsonl"
    lines = [json.loads(line) | {"split": "0123456789abcdef"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = read_study(folder)
    assert find(study, read_scores(folder, study)).other_tests == (("without matching", "retrieval"),)


def test_another_test_set_is_noticed(folder: Path) -> None:
    other = folder / "cells/without-matching/seed-2/relations.jsonl"
    shutil.copy(folder / "cells/all-losses/seed-1/relations.jsonl", other)
    study = read_study(folder)
    assert find(study, read_scores(folder, study)).other_tests == (("without matching", "relations"),)


def with_stages(folder: Path, **posts: str) -> None:
    """Give the cells a stage of the tests, which is that of `posts` for the arms of these slugs."""
    stages = {}
    for path in folder.glob("cells/*/*/cell.json"):
        value = json.loads(path.read_text())
        slug = path.parent.parent.name
        value["stages"] = {"posts": posts.get(slug, f"synthesize-{value['seed']}"), "packed": "pack-0"}
        stages[f"{slug}/{path.parent.name}"] = value["stages"]
        path.write_text(json.dumps(value))
    kinds = {"entities": "posts", "relations": "posts", "retrieval": None}
    change(folder, stages=stages, measures={m: {"kind": m, "tests": tests} for m, tests in kinds.items()})


def test_the_same_words_with_photos_of_another_folder_are_noticed(folder: Path) -> None:
    """Posts with bystanders have the ids, words and labels of posts without; what was asked is not the same."""
    claim = {"claim": "c", "measure": "entities", "first": "all losses", "second": "without matching"}
    change(folder, claims=[claim, claim | {"second": "boxes swapped 1"}, claim | {"measure": "retrieval"}])
    with_stages(folder, **{"without-matching": "synthesize-of-others"})
    study = read_study(folder)
    found = find(study, read_scores(folder, study))
    assert found.other_tests == ()
    assert found.other_photos == (("without matching", "entities"), ("without matching", "relations"))
    assert [one.other_tests for one in found.judged] == [True, False, False]


def test_what_is_the_same_for_all_seeds(folder: Path) -> None:
    with_stages(folder, **{"without-matching": "synthesize-of-others"})
    assert read_study(folder).same_for_all_seeds() == ["packed", "posts"], "posts in one arm alone"
    with_stages(folder)
    assert read_study(folder).same_for_all_seeds() == ["packed"]
    change(folder, seeds=[2])
    assert read_study(folder).same_for_all_seeds() == [], "of one seed nothing is shared"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "none"}, "baseline or claims name arms that are not there: 'none'"),
        ({"seeds": [1, 1]}, "seeds are listed twice: '1'"),
        ({"seeds": ["one"]}, "seeds.0: Input should be a valid integer"),
        ({"measures": {"../x": {"kind": "entities"}}}, "not fit to name a file: '../x'"),
        (
            {"claims": [{"claim": "c", "first": "all losses", "second": "all losses", "measure": "speed"}]},
            "claims name measures that are not there: 'speed'",
        ),
    ],
)
def test_mistakes_in_what_was_asked(folder: Path, changed: dict[str, Any], message: str) -> None:
    change(folder, **changed)
    with pytest.raises(StudyError) as caught:
        read_study(folder)
    assert message in str(caught.value)


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds no study: cannot read study\.json \(No such file"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "cell.json",
            '{"arm": "other", "seed": 1}',
            "is of arm 'other' at seed 1, and belongs to 'all losses'",
        ),
        ("cell.json", "{", "is not JSON"),
        ("ceiling.json", "[]", "must hold a JSON object"),
        ("ceiling.json", '{"entities": {"words": {}}}', "ceiling.json: 'entities' of 'words' has no 'F1'"),
        ("retrieval.jsonl", '{"direction": "image_to_text", "rank": -1}\n', "line 1: expected"),
        ("retrieval.jsonl", '{"direction": "image_to_text", "rank": 1}\n', "holds no ranks of text_to_image"),
        ("entities.jsonl", "{}\n", "line 1: expected either"),
    ],
)
def test_damaged_cells_are_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / "cells/all-losses/seed-1" / file).write_text(content)
    with pytest.raises((StudyError, CorpusError)) as caught:
        read_scores(folder, read_study(folder))
    assert message in str(caught.value)
    assert file in str(caught.value)


def test_predictions_of_another_kind(folder: Path) -> None:
    cell = folder / "cells/all-losses/seed-1"
    shutil.copy(cell / "relations.jsonl", cell / "entities.jsonl")
    with pytest.raises(StudyError, match=r"holds predictions of relations, where study\.json has entities"):
        read_scores(folder, read_study(folder))
