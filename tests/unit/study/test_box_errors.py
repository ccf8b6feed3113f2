"""Wrong boxes: the same ones at every higher rate, still boxes, and nothing else is touched."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup.config import load
from promptmeup.corpora.boxes import read_boxes
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.records import Reject
from promptmeup.study.box_errors import BoxErrorsConfig, make_box_errors

WAYS = ("jittered", "swapped", "removed", "shuffled")
KEYS = ("x0", "y0", "x1", "y1", "label", "score")
sides = st.tuples(st.floats(-20, 2000), st.floats(21, 2000))
rates = st.floats(0, 1)


@st.composite
def corpora(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Lines of at least two images with boxes, every box with a number of its own."""
    lines = []
    for image, number in enumerate([*draw(st.lists(st.integers(0, 4), max_size=3)), 1, 2]):
        boxes = []
        for place in range(number):
            (x0, width), (y0, height) = draw(sides), draw(sides)
            corners = {"x0": x0, "y0": y0, "x1": x0 + width, "y1": y0 + height}
            boxes.append({**corners, "label": f"{image}", "score": 0.5, "own": [image, place]})
        lines.append({"image_path": f"./a/{image}.jpg", "boxes": boxes, "camera": image})
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def made(folder: Path, lines: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    source = write(folder / "boxes.jsonl", lines)
    make_box_errors(BoxErrorsConfig(source=source, out=folder / "new" / "wrong.jsonl", **settings))
    text = (folder / "new" / "wrong.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def by_own(lines: list[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    return {tuple(box["own"]): box for line in lines for box in line["boxes"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boxes")


@settings(max_examples=60, deadline=None)
@given(lines=corpora(), low=rates, high=rates, how=st.sampled_from(WAYS), seed=st.integers(-3, 3))
def test_what_is_wrong_stays_wrong_in_the_same_way_as_the_rate_grows(
    folder: Path, lines: list[dict[str, Any]], low: float, high: float, how: str, seed: int
) -> None:
    low, high = sorted((low, high))
    source = by_own(lines)
    at_low, at_high = (by_own(made(folder, lines, how=how, rate=rate, seed=seed)) for rate in (low, high))
    wrong = [own for own in source if at_low.get(own) != source[own]]
    assert all(at_high.get(own) == at_low.get(own) for own in wrong)
    assert at_low == by_own(made(folder, lines, how=how, rate=low, seed=seed))


@settings(max_examples=60, deadline=None)
@given(lines=corpora(), seed=st.integers())
def test_jittered_boxes_are_other_boxes_inside(folder: Path, lines: list[dict[str, Any]], seed: int) -> None:
    found = made(folder, lines, how="jittered", rate=1, seed=seed)
    for line, before in zip(found, lines, strict=True):
        assert line["camera"] == before["camera"] and len(line["boxes"]) == len(before["boxes"])
        for box, old in zip(line["boxes"], before["boxes"], strict=True):
            assert {k: box[k] for k in ("own", "label", "score")} == {
                k: old[k] for k in ("own", "label", "score")
            }
            for low, high in (("x0", "x1"), ("y0", "y1")):
                start = max(old[low], 0)
                side, new_side = old[high] - start, box[high] - box[low]
                assert 0 <= box[low] < box[high]
                assert (box[low], box[high]) != (old[low], old[high])
                assert new_side <= 2.001 * side and (box[low] == 0 or new_side >= 0.499 * side)
                if box[low] > 0:
                    moved = abs((box[low] + box[high]) / 2 - (start + old[high]) / 2)
                    assert 0.249 * side <= moved <= 0.751 * side
                # at least a quarter of the side is where boxes of the image were
                reach = max(other[high] for other in before["boxes"])
                assert min(box[high], reach) - box[low] >= 0.24 * side


@settings(max_examples=60, deadline=None)
@given(lines=corpora(), seed=st.integers())
def test_swapped_boxes_come_from_other_images(folder: Path, lines: list[dict[str, Any]], seed: int) -> None:
    everything = [(line["image_path"], {k: box[k] for k in KEYS}) for line in lines for box in line["boxes"]]
    for line in made(folder, lines, how="swapped", rate=1, seed=seed):
        for box in line["boxes"]:
            images = [image for image, other in everything if other == {k: box[k] for k in KEYS}]
            assert images and line["image_path"] not in images
            assert box["own"][0] == line["camera"]


def test_swapped_boxes_lie_on_no_object_of_their_image(tmp_path: Path) -> None:
    """In one of ten images the object stands elsewhere; all others have theirs where half of its box is everyone's."""
    corners = [
        {"x0": 100 if n % 10 == 0 else n % 3, "y0": 0, "x1": 150 if n % 10 == 0 else 50, "y1": 40}
        for n in range(200)
    ]
    lines = [
        {"image_path": f"{n}.jpg", "camera": n, "boxes": [{**box, "label": "a", "score": 1.0}]}
        for n, box in enumerate(corners)
    ]
    for line, box in zip(made(tmp_path, lines, how="swapped", rate=1), corners, strict=True):
        assert (line["boxes"][0]["x0"] == 100) == (box["x0"] != 100)
    alike = lines[1:3]  # no box is elsewhere: the other image's, all the same
    found = made(tmp_path, alike, how="swapped", rate=1)
    assert [line["boxes"][0]["x0"] for line in found] == [2, 1]


def test_shuffled_boxes_come_in_an_order_of_chance(tmp_path: Path) -> None:
    """The largest of three, which came first everywhere, comes first in a third of the images; corners stay."""
    boxes = [{"x0": 0, "y0": 0, "x1": side, "y1": side, "label": "a", "score": 1.0} for side in (90, 30, 20)]
    found = made(
        tmp_path,
        [{"image_path": f"{n}.jpg", "boxes": boxes} for n in range(900)],
        how="shuffled",
        rate=1,
    )
    first = []
    for line in found:
        assert [box | {"score": 1.0} for box in line["boxes"]] == boxes
        assert all(0 < box["score"] <= 1 for box in line["boxes"])
        first.append(max(line["boxes"], key=lambda box: box["score"] * box["x1"] * box["y1"])["x1"])
    assert [first.count(side) / 900 for side in (90, 30, 20)] == pytest.approx([1 / 3] * 3, abs=0.05)


def ordinary(images: int) -> list[dict[str, Any]]:
    box = {"x0": 10, "y0": 10, "x1": 60, "y1": 40, "label": "person", "score": 1.0}
    return [
        {"image_path": f"{n}.jpg", "boxes": [box | {"x1": 61 + n, "own": [n, k]} for k in range(5)]}
        for n in range(images)
    ]


@pytest.mark.parametrize("how", WAYS)
def test_a_rate_of_0_changes_nothing_and_0_3_three_in_ten(tmp_path: Path, how: str) -> None:
    lines = ordinary(400)
    assert made(tmp_path, lines, how=how, rate=0) == lines
    source, found = by_own(lines), by_own(made(tmp_path, lines, how=how, rate=0.3))
    assert sum(found.get(own) != source[own] for own in source) / len(source) == pytest.approx(0.3, abs=0.03)
    other_seed = by_own(made(tmp_path, lines, how=how, rate=0.3, seed=1))
    assert other_seed != found


def test_the_same_boxes_are_wrong_in_every_way(tmp_path: Path) -> None:
    lines = ordinary(20)
    source = by_own(lines)
    files = [by_own(made(tmp_path, lines, how=how, rate=0.4)) for how in WAYS]
    first, *others = [{own for own in source if file.get(own) != source[own]} for file in files]
    assert others == [first, first, first]


def test_the_corpus_reads_it(tmp_path: Path) -> None:
    lines = made(tmp_path, ordinary(9), how="removed", rate=1)
    assert all(line["boxes"] == [] for line in lines)
    rejects: list[Reject] = []
    wanted = {f"{n}.jpg" for n in range(9)}
    found = list(read_boxes(tmp_path / "new/wrong.jsonl", wanted=wanted, reject=rejects.append))
    assert found == [(f"{n}.jpg", ()) for n in range(9)] and not rejects


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"image_path": "1.jpg"}, 'line 3: expected {"image_path"'),
        ({"image_path": "./0.jpg", "boxes": []}, "line 3: ./0.jpg has an earlier line"),
        ({"image_path": "9.jpg", "boxes": [{"x0": 3}]}, "line 3: box 1 of 1 needs finite numbers"),
        (
            {"image_path": "9.jpg", "boxes": [ordinary(1)[0]["boxes"][0] | {"x0": -9, "x1": 0}]},
            "line 3: box 1 of 1",
        ),
    ],
)
def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        made(tmp_path, [*ordinary(2), line], rate=0.5)
    assert not (tmp_path / "new").exists()


def test_mistakes_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no image but 0\.jpg has boxes to swap for: set how=jittered"):
        made(tmp_path, ordinary(1), how="swapped", rate=0.1)
    with pytest.raises(CorpusError, match=r"none\.jsonl is missing: set source to a file of boxes"):
        make_box_errors(BoxErrorsConfig(source=tmp_path / "none.jsonl", out=tmp_path / "out"))
    with pytest.raises(ConfigError, match="is the source, which is not written over: name another file"):
        load(BoxErrorsConfig, None, [f"source={tmp_path}/a.jsonl", f"out={tmp_path}/./a.jsonl"])
    with pytest.raises(ConfigError, match=r"'rate' = 1\.5"):
        load(BoxErrorsConfig, None, ["source=a", "out=b", "rate=1.5"])
    source = write(tmp_path / "a.jsonl", ordinary(1))
    with pytest.raises(ConfigError, match=r"cannot write .*/inside: .*; set out to a file that can be"):
        make_box_errors(BoxErrorsConfig(source=source, out=source / "inside"))
