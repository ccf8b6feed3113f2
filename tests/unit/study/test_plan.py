"""Cells, stages and the names of their folders; every mistake in a chain is one message that names the arm."""

from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import load
from promptmeup.corpora.synthetic import SyntheticConfig
from promptmeup.errors import ConfigError
from promptmeup.study.plan import Cell, Plan, as_json, make_plan
from promptmeup.study.settings import StudyConfig
from promptmeup.study.sources import content_of, find_sources
from promptmeup.study.study import plan_study
from tests.support.real_data import ROOT
from tests.support.study_chain import chain, configured


def planned(folder: Path, *overrides: str, chain_of: dict[str, Any] | None = None) -> Plan:
    return make_plan(configured(folder, *overrides, chain_of=chain_of))


def folders(plan: Plan) -> list[str]:
    return [stage.folder.name for stage in plan.stages]


def cell(plan: Plan, arm: str, seed: int = 1) -> Cell:
    (found,) = [cell for cell in plan.cells if (cell.arm, cell.seed) == (arm, seed)]
    return found


def names(plan: Plan) -> list[str]:
    return list(dict.fromkeys(cell.arm for cell in plan.cells))


def test_cells_share_what_is_the_same(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [(cell.arm, cell.seed) for cell in plan.cells] == [
        ("half", 1),
        ("half", 2),
        ("all boxes", 1),
        ("all boxes", 2),
    ]
    one, other = cell(plan, "half").stages, cell(plan, "all boxes").stages
    assert one["boxes"] == other["boxes"]
    assert one["jitter"].folder != other["jitter"].folder
    assert one["names"].folder != other["names"].folder, "it needs jitter"
    assert len(plan.stages) == 2 * (1 + 2 * 2)
    order = [stage.folder for stage in plan.stages]
    assert all(order.index(need) < order.index(s.folder) for s in plan.stages for need in s.needs)
    assert one["names"].needs == (one["jitter"].folder,)
    seeds = [stage.config.model_dump()["seed"] for stage in plan.stages]
    assert seeds == sorted(seeds), "whole cells finish early"


def test_a_folder_is_named_by_neither_the_stores_place_nor_the_stages_name(tmp_path: Path) -> None:
    before = planned(tmp_path)
    assert folders(planned(tmp_path, f"store={tmp_path}/elsewhere", "out=other")) == folders(before)
    renamed = chain(tmp_path / "inputs")
    stages = renamed["stages"]
    renamed["stages"] = {"first": stages["boxes"], "jitter": stages["jitter"], "names": stages["names"]}
    stages["jitter"]["set"][0] = "source={first}/boxes.jsonl"
    assert folders(planned(tmp_path, chain_of=renamed)) == folders(before)


def test_settings_that_mean_the_same_are_one_folder(tmp_path: Path) -> None:
    """What counts is the whole configuration, not how it was typed."""
    changed = chain(tmp_path / "inputs")
    changed["stages"]["jitter"]["set"] += ["how=jittered", "rate=0.50"]
    assert folders(planned(tmp_path, chain_of=changed)) == folders(planned(tmp_path))
    changed["stages"]["boxes"]["seconds"] = 5
    assert folders(planned(tmp_path, chain_of=changed)) == folders(planned(tmp_path))


def test_a_file_of_other_content_is_another_stage(tmp_path: Path) -> None:
    """A template, a vocabulary: edited under its old name, and what was made of it is not what is asked for."""
    config = configured(tmp_path)
    before = folders(make_plan(config))
    source = tmp_path / "inputs/entities.tsv"
    source.write_text(source.read_text().replace("Ada0", "Eve0"))
    after = folders(make_plan(config))
    assert [name.rpartition("-")[0] for name in before] == [name.rpartition("-")[0] for name in after]
    changed = {old.rpartition("-")[0] for old, new in zip(before, after, strict=True) if old != new}
    assert changed == {"make_entity_errors"}


def changed_commands(before: list[str], after: list[str]) -> set[str]:
    return {old.rpartition("-")[0] for old, new in zip(before, after, strict=True) if old != new}


def test_a_folder_of_other_content_is_another_stage(tmp_path: Path) -> None:
    """Labels that somebody corrected, in a folder that a stage names or links."""
    world = chain(tmp_path / "inputs")
    tweets = tmp_path / "tweets"
    tweets.mkdir()
    (tweets / "train.txt").write_text("Ada B-PER")
    world["stages"]["tweets"] = {"command": "finetune", "set": ["out={self}", f"data.root={tweets}"]}
    world["stages"]["tweets"]["config"] = str(ROOT / "configs/finetune/twitter2015.yaml")
    world["measures"]["entities"] = {"kind": "entities", "file": "{tweets}/x.jsonl"}
    config = configured(tmp_path, chain_of=world)
    before = folders(make_plan(config))
    assert folders(make_plan(config)) == before
    (tweets / "train.txt").write_text("Ada B-LOC")
    after = folders(make_plan(config))
    assert changed_commands(before, after) == {"finetune"}
    (tmp_path / "inputs/predictions/retrieval.jsonl").write_text("")
    assert changed_commands(after, folders(make_plan(config))) == {"make_entity_errors"}
    sources = cell(make_plan(config), "half").stages["tweets"].sources
    assert tweets in sources


def test_folders_that_change_as_a_study_goes_on_are_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that hold the store, the study or the work tree, a cache, and an experiment that is called as a folder."""
    monkeypatch.chdir(tmp_path)
    places = [tmp_path / name for name in ("work/stages/a", "work/out", "cache", "name", "given")]
    for place in places:
        place.mkdir(parents=True)
    store, ours = tmp_path / "work/stages", [tmp_path / "work/stages", tmp_path / "work/out", tmp_path]
    value = {
        "root": [
            str(tmp_path),
            ".",
            "/",
            "work",
            str(store),
            str(store / "a"),
            "given",
            "no/such",
            "x" * 5000,
        ],
        "data": {"cache": {"folder": str(tmp_path / "cache")}},
        "tracking": {"experiment": "name"},
    }
    assert find_sources(value, ours=ours) == [Path("given")]


def test_content_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    seen = [content_of(folder)]

    def noticed() -> bool:
        seen.append(content_of(folder))
        assert seen[-1] == content_of(folder)
        return seen[-1] not in seen[:-1]

    (folder / "deep/labels.json").write_text("[1]")
    assert noticed()
    (folder / "deep/labels.json").write_text("[2]")
    assert noticed(), "as long as before"
    (folder / "deep/labels.json").rename(folder / "deep/other.json")
    assert noticed()
    weights = bytearray(3 * 2**20)
    (folder / "model.safetensors").write_bytes(weights)
    assert noticed()
    for place in (0, 2**19 - 1, len(weights) - 2**19, len(weights) - 1):
        weights[place] = 1
        (folder / "model.safetensors").write_bytes(weights)
        assert noticed(), place
    (folder / "a.jpg").write_bytes(b"one")
    assert noticed()
    (folder / "a.jpg").write_bytes(b"two")
    assert not noticed(), "photos are not read"
    (folder / "a.jpg").write_bytes(b"three")
    assert noticed()
    (folder / ".DS_Store").touch()
    assert not noticed()
    (folder / "deep/up").symlink_to(folder)
    (folder / "deep/none").symlink_to(folder / "absent")
    assert noticed(), "and it has an end"
    assert content_of(tmp_path / "absent") == "nothing"


def test_an_arm_that_changes_nothing(tmp_path: Path) -> None:
    """Its effect would be 0 beyond all doubt."""
    unused = chain(tmp_path / "inputs")
    unused["stages"]["other"] = unused["stages"]["jitter"] | {"set": [*unused["stages"]["jitter"]["set"]]}
    copy = 'arms=[{name: half}, {name: copy, change: {other: ["rate=0.9"]}}]'
    with pytest.raises(
        ConfigError,
        match="'half' and 'copy' are the same: what they change does not reach the measures retrieval",
    ):
        planned(tmp_path, copy, chain_of=unused)


def test_values_of_a_curve_are_written_as_they_are(tmp_path: Path) -> None:
    curve = 'curves=[{name: boxes, values: [1, 0.12345678, 1e-7], change: {jitter: ["rate={x}"]}}]'
    plan = planned(tmp_path, curve, "arms=[{name: half}]")
    rates = [cell(plan, arm).stages["jitter"].config.model_dump()["rate"] for arm in names(plan)]
    assert rates == [0.5, 1.0, 0.12345678, 1e-7]
    assert names(plan) == ["half", "boxes 1", "boxes 0.12345678", "boxes 1e-07"]
    large = 'curves=[{name: seeds, values: [1000000], change: {jitter: ["seed={x}"]}}]'
    plan = planned(tmp_path, large, "arms=[{name: half}]")
    assert cell(plan, "seeds 1000000").stages["jitter"].config.model_dump()["seed"] == 1_000_000


def test_an_arm_changes_only_what_comes_after(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'arms=[{name: half}, {name: other, change: {names: ["rate=0.3"]}}]')
    one, other = cell(plan, "half").stages, cell(plan, "other").stages
    assert [name for name in one if one[name] != other[name]] == ["names"]


def test_what_no_measure_needs_is_not_run(tmp_path: Path) -> None:
    """An arm that starts elsewhere leaves out what the others start from."""
    start = chain(tmp_path / "inputs")
    start["stages"]["names"]["set"].append("source={boxes}/entities.tsv")
    start["journal"] = "{jitter}/journal.jsonl"
    del start["stages"]["names"]["link"]["boxes"]
    change = '{name: half, change: {names: ["source={jitter}/entities.tsv"]}}'
    plan = planned(tmp_path, f"arms=[{change}, {{name: short}}]", chain_of=start)
    assert list(cell(plan, "half").stages) == ["boxes", "jitter", "names"]
    assert list(cell(plan, "short").stages) == ["boxes", "names"]
    assert cell(plan, "half").journal is not None
    assert cell(plan, "short").journal is None


def test_braces_of_yaml_stay(tmp_path: Path) -> None:
    world = chain(tmp_path / "inputs")
    sizes = "extraction={num_train: 4, num_val: 2, num_test: 6}"
    world["stages"]["world"] = {"command": "synthesize", "set": ["out={self}", sizes, "seed={seed}"]}
    world["measures"]["entities"] = {"kind": "entities", "file": "{world}/x.jsonl"}
    config = cell(planned(tmp_path, chain_of=world), "half").stages["world"].config
    assert isinstance(config, SyntheticConfig)
    assert (config.extraction.num_train, config.extraction.num_test, config.seed) == (4, 6, 1)


def test_curves(tmp_path: Path) -> None:
    curve = 'curves=[{name: boxes, values: [0.25, 1], change: {jitter: ["rate={x}"]}}]'
    plan = planned(tmp_path, curve, "arms=[{name: half}]")
    assert [(c.arm, c.slug, c.curve, c.x) for c in plan.cells if c.seed == 1] == [
        ("half", "half", None, None),
        ("boxes 0.25", "boxes-0-25", "boxes", 0.25),
        ("boxes 1", "boxes-1", "boxes", 1.0),
    ]
    assert cell(plan, "boxes 0.25").stages["jitter"].config.model_dump()["rate"] == 0.25


def with_change(what: dict[str, Any]) -> Any:
    def change(value: dict[str, Any]) -> dict[str, Any]:
        for path, new in what.items():
            *parts, last = path.split(".")
            place = value
            for part in parts:
                place = place[part]
            place[last] = new
        return value

    return change


@pytest.mark.parametrize(
    ("overrides", "change", "parts"),
    [
        (
            ['arms=[{name: half, change: {boxen: ["a=1"]}}]'],
            {},
            ["arm 'half'", "no stage boxen", "boxes, jitter"],
        ),
        (["change={boxen: [a=1]}"], {}, ["no stage boxen"]),
        (["measures=[retrieval, beauty]"], {}, ["no measure beauty", "it has retrieval"]),
        (
            ["claims=[{claim: c, first: half, second: all boxes, measure: beauty}]"],
            {},
            ["claims name measures that do not count: beauty"],
        ),
        (
            ["claims=[{claim: c, first: half, second: none, measure: retrieval}]"],
            {},
            ["arms that are not there: none"],
        ),
        (
            ["claims=[{claim: c, first: half, second: half, measure: retrieval}]"],
            {},
            ["claims", "'half' is compared with itself: name two arms"],
        ),
        (["baseline=whole"], {}, ["not there: whole"]),
        (["arms=[{name: half}, {name: half}]"], {}, ["arms of the same name: half"]),
        (["arms=[{name: half}, {name: Half!}]"], {}, ["'half' and 'Half!' would share the folder half"]),
        (["seeds=[1, 1]"], {}, ["a seed is named twice"]),
        (["measures=[retrieval, retrieval]"], {}, ["a measure is named twice"]),
        (["tracking.uri=mlruns"], {}, ["tracking.uri", "sqlite:///mlflow.db"]),
        (
            ['arms=[{name: half, change: {jitter: ["source={nmaes}/x"]}}]'],
            {},
            ["arm 'half': stage jitter", "{nmaes}", "no such stage before it", "seed, boxes"],
        ),
        (
            ['arms=[{name: half, change: {boxes: ["source={jitter}/x"]}}]'],
            {},
            ["stage boxes", "no such stage before it"],
        ),
        (
            ['arms=[{name: half, change: {jitter: ["rat=1"]}}]'],
            {},
            ["arm 'half': stage jitter", "unknown key 'rat'", "did you mean 'rate'"],
        ),
        (
            ['arms=[{name: half, change: {jitter: ["rate=7"]}}]'],
            {},
            ["arm 'half': stage jitter", "'rate' = 7"],
        ),
        ([], {"stages.jitter.link": {"a": "{c}"}}, ["stage jitter", "{c}"]),
        ([], {"stages.jitter.command": "pck"}, ["stages.jitter.command", "'pck'"]),
        ([], {"stages.jitter.ranks": 2}, ["make_box_errors runs on one process"]),
        (
            [],
            {"stages.jitter.config": "no/such.yaml"},
            ["stage jitter", "cannot read the configuration no/such.yaml"],
        ),
        (
            [],
            {"stages.boxes.set": ["source=a", "out=b"]},
            ["stage boxes would not write into its folder", "out={self}"],
        ),
        (
            [],
            {"measures.retrieval.file": "predictions.jsonl"},
            ["retrieval: predictions.jsonl lies in no stage"],
        ),
        ([], {"measures.retrieval.file": "{c}/p.jsonl"}, ["measure retrieval", "{c}"]),
        (
            [],
            {"measures.retrieval.tests": "posts"},
            ["have their tests from posts", "the stages are boxes, jitter, names"],
        ),
        (
            [],
            {"measures.pretrain": {"kind": "retrieval", "file": "{names}/a"}},
            ["measures cannot be called pretrain"],
        ),
        ([], {"stages.Seed": {"command": "pack"}}, ["stages cannot be called Seed"]),
        ([], {"ceiling": "{c}/ceiling.json"}, ["arm 'half'", "{c}"]),
    ],
)
def test_mistakes(tmp_path: Path, overrides: list[str], change: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, *overrides, chain_of=with_change(change)(chain(tmp_path / "inputs")))
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).count("arm '") <= 1


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    config: StudyConfig = configured(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    shown = plan_study(config, None)
    assert sorted(tmp_path.rglob("*")) == before
    for part in (
        "2 arms x 2 seeds = 4 cells, 0 of them finished",
        "10 stages, 10 to run: about 5:00 in 1 processes (sharing stages saves 17%)",
        "2 seeds find a difference of",
        "to do  jitter",
    ):
        assert part in shown


def test_further_seeds_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    assert "(seeds=[6,4,7,8])" in plan_study(configured(tmp_path, "seeds=[6, 4]"), None)


def test_the_report_is_told_where_the_tests_come_from(tmp_path: Path) -> None:
    from_boxes = with_change({"measures.retrieval.tests": "boxes"})(chain(tmp_path / "inputs"))
    written = as_json(planned(tmp_path, chain_of=from_boxes), "")
    assert written["measures"] == {"retrieval": {"kind": "retrieval", "tests": "boxes"}}
    assert written["stages"]["half/seed-1"]["boxes"].startswith("make_box_errors-")


def test_the_shipped_study_of_ambiguity_tells_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = as_json(make_plan(load(StudyConfig, Path("configs/study/ambiguity.yaml"), ())), "")
    tests = written["measures"]["entities"]["tests"]
    one, other = (written["stages"][f"{slug}/seed-4"][tests] for slug in ("as-told", "two-more-people"))
    assert one != other
